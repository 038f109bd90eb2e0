"""A fixed checkpoint behind Ray Serve: several replicas, batched, over the same messages as
``worldloom_dist.serve``.

    pip install 'ray[serve]'
    python examples/ray_serve_policy.py runs/quick-0001 --replicas 2 --port 9000
    python examples/ray_serve_policy.py --ask 127.0.0.1:9000 --env gym:Pendulum-v1 --episodes 5

For policies that decide by what they see now. Serve sends a question to any replica, so nothing
can remember an episode: a recurrent policy is refused, and one that plans begins each plan afresh.
Training does not go through here: use ``--gateway-port`` for that.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from worldloom.core.exceptions import ConfigurationError, MissingDependencyError, WorldLoomError
from worldloom_client.spaces import ActionConverter, ObsConverter
from worldloom_client.wire import PACKAGE, decode_tensor, encode_tensor, message, method, specs_of

SERVICE = "PolicyService"
APPLICATION = (("application", "policy"),)
MAX_BATCH = 64
WAIT_S = 0.002
READY_WITHIN_S = 60.0


def add_policy_service(_: Any, server: Any) -> None:
    """Tells Serve's gRPC proxy the names of the methods; messages pass as bytes."""
    methods = {name: grpc.unary_unary_rpc_method_handler(None) for name in ("Describe", "Act")}
    handler = grpc.method_handlers_generic_handler(f"{PACKAGE}.{SERVICE}", methods)
    server.add_generic_rpc_handlers((handler,))


def make_deployment(replicas: int) -> Any:
    """The class that a replica is made of.

    Raises:
        MissingDependencyError: If Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingDependencyError("this example", "'ray[serve]'") from error

    @serve.deployment(num_replicas=replicas, max_ongoing_requests=4 * MAX_BATCH)
    class ServedPolicy:
        """One replica."""

        def __init__(self, run_dir: str, checkpoint: str) -> None:
            import torch

            torch.set_num_threads(1)
            self._policy, self._contract, self._version = load(Path(run_dir), checkpoint)

        def Describe(self, _: bytes) -> Any:  # noqa: N802 - as the proto names it
            """What the policy sees and does."""
            return self._contract.describe(self._version)

        async def Act(self, data: bytes) -> Any:  # noqa: N802
            """The answer to an ``ActRequest``; obs and action are all of it that is used."""
            return await self._decide(data)

        @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_S)
        async def _decide(self, asked: list[bytes]) -> list[Any]:
            requests = [message("ActRequest").FromString(data) for data in asked]
            counts = [len(request.env) for request in requests]
            specs = self._contract.obs
            obs = {
                spec.name: np.concatenate(
                    [
                        decode_tensor(request.obs[place], spec, (count,), f"obs {spec.name!r}")
                        for request, count in zip(requests, counts, strict=True)
                    ]
                )
                for place, spec in enumerate(specs)
            }
            total = sum(counts)
            carry = self._policy.initial_carry(total)
            out = self._policy.act(obs, carry, np.ones(total, bool), explore=False)
            edges = np.cumsum([0, *counts])
            return [
                message("ActResponse")(
                    action=[
                        encode_tensor(out.action[spec.name][start:stop])
                        for spec in self._contract.action
                    ]
                )
                for start, stop in pairwise(edges)
            ]

    return ServedPolicy


def load(run_dir: Path, checkpoint: str) -> tuple[Any, Any, Any]:
    """A policy, what it promises, and its version.

    Raises:
        ConfigurationError: If it remembers its episode.
        CheckpointError: If there is no such checkpoint.
    """
    from worldloom.core.protocol import RemembersActions
    from worldloom.core.sequence import PolicyVersion
    from worldloom_dist.evaluate import find_checkpoint, without_replay
    from worldloom_dist.gateway.building import contract_of
    from worldloom_dist.run.builders import build_store, restore_agent
    from worldloom_dist.run.cli import read_config
    from worldloom_dist.run.plan import resolve

    plan = resolve(without_replay(read_config(run_dir)))
    folder = find_checkpoint(build_store(plan, run_dir), checkpoint)
    agent, train_steps = restore_agent(plan, folder)
    if isinstance(agent, RemembersActions):
        raise ConfigurationError(
            f"{plan.agent.name} remembers its episode, and Ray Serve sends each question to "
            "another replica; use python -m worldloom_dist.serve"
        )
    return agent, contract_of(plan, ()), PolicyVersion(1, train_steps)


def run(options: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    deployment = make_deployment(options.replicas)
    load(options.run_dir, options.checkpoint)  # what is wrong is said here, before anything starts
    import ray
    from ray import serve
    from ray.serve.config import gRPCOptions

    ray.init(include_dashboard=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    # the proxy imports this file by its name
    servicers = [f"{Path(__file__).stem}.add_policy_service"]
    serve.start(
        grpc_options=gRPCOptions(port=options.port, grpc_servicer_functions=servicers),
        http_options={"port": options.http_port},
    )
    app = deployment.bind(str(options.run_dir.absolute()), options.checkpoint)
    serve.run(app, name="policy", route_prefix="/policy")
    print(f"serving {options.run_dir} at port {options.port}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while True:
            time.sleep(1)
    finally:
        serve.shutdown()


def ask(options: argparse.Namespace) -> None:
    """Play episodes with what is served."""
    import gymnasium

    env = gymnasium.make(options.env.removeprefix("gym:"))
    with grpc.insecure_channel(options.ask) as channel:

        def call(name: str, request: Any, within_s: float = 10.0) -> Any:
            """One call."""
            unary = channel.unary_unary(
                method(SERVICE, name),
                request_serializer=lambda asked: asked.SerializeToString(),
                response_deserializer=message(f"{name}Response").FromString,
            )
            return unary(request, timeout=within_s, metadata=APPLICATION, wait_for_ready=True)

        described = call("Describe", message("DescribeRequest")(), READY_WITHIN_S)
        obs_specs, action_specs = specs_of(described.obs), specs_of(described.action)
        to_obs = ObsConverter(env.observation_space, obs_specs)
        to_action = ActionConverter(env.action_space, action_specs)
        for episode in range(options.episodes):
            obs, _ = env.reset(seed=episode)
            total, ended = 0.0, False
            while not ended:
                seen = to_obs(obs)
                tensors = [encode_tensor(seen[spec.name][None]) for spec in obs_specs]
                answer = call("Act", message("ActRequest")(env=[0], obs=tensors))
                action = {
                    spec.name: decode_tensor(tensor, spec, (1,), "action")[0]
                    for spec, tensor in zip(action_specs, answer.action, strict=True)
                }
                obs, reward, terminated, truncated, _ = env.step(to_action(action))
                total += float(reward)
                ended = terminated or truncated
            print(f"return {total:g}", flush=True)


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, nargs="?", help="a run folder")
    parser.add_argument("--checkpoint", default="newest", help="newest, best, or a folder name")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--port", type=int, default=9000, help="of the gRPC proxy")
    parser.add_argument("--http-port", type=int, default=8000, help="of Serve's HTTP proxy")
    parser.add_argument("--ask", default=None, help="HOST:PORT of what is served; be a client")
    parser.add_argument("--env", default="gym:Pendulum-v1", help="that the client plays")
    parser.add_argument("--episodes", type=int, default=5)
    options = parser.parse_args()
    if (options.run_dir is None) == (options.ask is None):
        parser.error("name a run folder to serve it, or --ask HOST:PORT to use what is served")
    try:
        run(options) if options.ask is None else ask(options)
    except WorldLoomError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
