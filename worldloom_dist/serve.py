"""``python -m worldloom_dist.serve RUN --port 50051``: answer programs anywhere with the policy of
a checkpoint, over gRPC.

The same service as a run's gateway, without a replay behind it: a client is told so, and stores
nothing. While one client is alone its actions depend on its questions only, so it gets the returns
of ``python -m worldloom_dist.evaluate`` for the same envs and seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldloom.algorithms.registry import agent_spec, one_task_config, outside_module
from worldloom.core.exceptions import (
    CheckpointError,
    ConfigurationError,
    MissingDependencyError,
    WorldLoomError,
)
from worldloom.core.keys import load_key
from worldloom.core.loopback import address_text, usable_loopback
from worldloom.core.program import called, interruptible
from worldloom.core.protocol import Policy
from worldloom.core.sequence import PolicyVersion
from worldloom.core.specs import EnvSpec
from worldloom.core.weights import WeightsSnapshot
from worldloom.envs.consent import check_env_code, with_consent
from worldloom.envs.factory import env_spec
from worldloom.training.one_task import agent_of_task, chosen_task, task_env
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.actors.batching import Batcher
from worldloom_dist.actors.inference import InferenceServer
from worldloom_dist.evaluate import as_published, find_checkpoint, recorded_env, without_replay
from worldloom_dist.gateway.building import KEY_FILE, access_of, build_gateway
from worldloom_dist.gateway.contract import check_specs
from worldloom_dist.gateway.server import GatewayServer
from worldloom_dist.run.builders import build_store, restore_agent
from worldloom_dist.run.cli import read_config
from worldloom_dist.run.config import GatewayConfig
from worldloom_dist.run.console import stdout_to_stderr
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.machine import check_device
from worldloom_dist.run.plan import Plan, resolve, role_seed
from worldloom_dist.run.signals import SIGNALS

if TYPE_CHECKING:
    from worldloom.training.checkpoints import CheckpointStore

__all__ = ["Served", "main", "serve"]

logger = logging.getLogger(__name__)

LOOK_FOR_CHECKPOINT_EVERY_S = 2.0
INCARNATION_BITS = 31
DRAIN_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is served, and to whom.

    Attributes:
        run_dir: A run folder, or one of its checkpoints.
        port: To listen on; 0 takes a free one.
        checkpoint: ``newest``, ``best``, or the name of a folder under ``checkpoints/``.
        explore: Let sessions ask for the noise of training.
        follow: Take up newer checkpoints as the run writes them.
        device: Where the policy acts.
        env: For a run without an env: which env its data is from.
        task: Of a run of several tasks, the name of the one that is served.
        trust_env: As in :func:`worldloom_dist.evaluate.evaluate`.
        gateway: Address, TLS, token and lease.
    """

    run_dir: Path
    port: int = 50051
    checkpoint: str = "newest"
    explore: bool = False
    follow: bool = False
    device: str = "cpu"
    env: str | None = None
    task: str | None = None
    trust_env: bool = False
    gateway: GatewayConfig = dataclasses.field(default_factory=GatewayConfig)

    def located(self) -> Served:
        """The same with the run folder, where a checkpoint was named.

        Raises:
            ConfigurationError: If a checkpoint is named twice, or cannot be followed.
        """
        found = self
        if self.run_dir.name.startswith("step-") or self.run_dir.name == "best":
            if self.checkpoint != "newest":
                raise ConfigurationError(
                    f"checkpoint: {self.run_dir} is one already; leave --checkpoint out"
                )
            name = self.run_dir.name
            found = dataclasses.replace(
                self, run_dir=self.run_dir.absolute().parent.parent, checkpoint=name
            )
        if found.follow and found.checkpoint not in ("newest", "best"):
            raise ConfigurationError(
                f"follow: {found.checkpoint} never changes; name newest or best, or leave "
                "--follow out"
            )
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port must be an integer in [0, 65535], got {self.port}")
        return found


class _CheckpointWeights:
    """A checkpoint as a source of weights; used by one thread.

    Args:
        plan: What wrote it.
        alone: Its env, where one of several tasks is served.
        store, served: Where it lies, and which one it is.
    """

    def __init__(
        self, plan: Plan, alone: EnvSpec | None, store: CheckpointStore, served: Served
    ) -> None:
        self._plan = plan
        self._alone = alone
        self._task = served.task
        self._store = store
        self._name = served.checkpoint
        self._device = served.device
        self._follows = served.follow
        self._snapshot: WeightsSnapshot | None = None
        self._folder = ""
        self._count = 0

    def version(self) -> PolicyVersion:
        """Of the checkpoint now; reads a newer one if there is."""
        if self._snapshot is None or (self._follows and self._current() != self._folder):
            self._load()
        assert self._snapshot is not None
        return self._snapshot.version

    def fetch(self) -> WeightsSnapshot:
        """Its weights."""
        assert self._snapshot is not None
        return self._snapshot

    def _current(self) -> str:
        if self._name == "best":
            return str(self._store.facts(self._store.find("best")).get("train_steps", ""))
        folders = self._store.folders()
        return folders[0].name if folders else self._folder

    def _load(self) -> None:
        current = self._current()
        folder = find_checkpoint(self._store, self._name)
        agent, train_steps = restore_agent(self._plan, folder, device=self._device)
        if self._alone is not None:
            (task,) = (one for one in self._plan.env_spec.tasks if one.name == self._task)
            state = agent.state_dict()
            _, agent = agent_of_task(
                self._plan.agent, state, self._plan.env_spec, task, self._alone
            )
        weights = as_published(agent, self._plan.config.learner.weights_dtype)
        self._count += 1
        self._snapshot = dataclasses.replace(
            weights, version=PolicyVersion(self._count, train_steps)
        )
        self._folder = current
        logger.info("serving %s (%d updates)", folder.name, train_steps)


class _ServedPolicy(InferenceServer):
    """Begins again, random state included, when it is told that no session is left."""

    def __init__(self, policy: Policy, weights: _CheckpointWeights, *, explore: bool) -> None:
        super().__init__(policy, weights, explore=explore)
        self._own_policy = policy
        self._rng_state = policy.rng_state()
        self.begins_again = False

    def act_batch(self, requests: Sequence[ActRequest]) -> list[ActReply]:
        """As :meth:`InferenceServer.act_batch`."""
        if self.begins_again:
            self.begins_again = False
            self._own_policy.load_rng_state(self._rng_state)
        return super().act_batch(requests)


async def serve(
    served: Served, on_ready: Callable[[int], object] = lambda _: None, *, until: asyncio.Event
) -> None:
    """Serve a checkpoint until told to stop.

    Args:
        served: What.
        on_ready: Told the port when the first answer can be given.
        until: Set to stop; what is being answered is answered first.

    Raises:
        ConfigurationError, CheckpointError: If there is no run, no such checkpoint, or no such
            port.
    """
    plan, server, batcher, policy = _prepare(served.located())
    tasks = [
        asyncio.ensure_future(
            batcher.run_forever(lambda: policy, LOOK_FOR_CHECKPOINT_EVERY_S, lambda _: None)
        ),
        asyncio.ensure_future(server.gateway.tend_for_ever()),
    ]
    try:
        port = await server.start(served.port)
        server.health.set(is_serving=True)
        on_ready(port)
        where = address_text(served.gateway.host, port)
        logger.info("%s of %s at %s", plan.agent.name, plan.env.env, where)
        stopped = asyncio.ensure_future(until.wait())
        done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        await server.stop(DRAIN_S)
    finally:
        for task in tasks:
            task.cancel()


def _prepare(served: Served) -> tuple[Plan, GatewayServer, Batcher, _ServedPolicy]:
    check_device("device", served.device)
    access = access_of(served.gateway)
    access.check()
    config = read_config(served.run_dir)
    code_of_env = config.env.played
    if config.env.is_none:
        config = dataclasses.replace(config, env=recorded_env(served.run_dir, served.env))
        # who names an env has agreed to its code, and to that alone
        code_of_env = config.env.played if served.env is None else code_of_env
    elif served.env is not None:
        raise ConfigurationError(
            f"env: {served.run_dir} was trained in {config.env.env}, and is served for it; "
            "leave --env out"
        )
    outside = outside_module(config.agent)
    check_env_code(served.run_dir, code_of_env, outside, trust_env=served.trust_env)
    config = dataclasses.replace(
        without_replay(config), gateway=served.gateway, gateways=1, gateway_port=None
    )
    known = list(config.env.tasks)
    task = chosen_task(served.task, known, served.run_dir, config.env.env)
    trained = resolve(config)
    plan = trained if task is None else _plan_of_task(trained, task)
    check_specs(plan.env_spec)
    plan = dataclasses.replace(
        plan, run_id=str(RunFolder(served.run_dir).read_json("config.json").get("run_id", ""))
    )
    alone = None if task is None else plan.env_spec
    weights = _CheckpointWeights(trained, alone, build_store(trained, served.run_dir), served)
    policy = _build_policy(plan, weights, served)
    actors = plan.config.actors
    batcher = Batcher(actors.max_batch, actors.max_wait_ms / 1000)
    batcher.version = policy.version
    gateway = build_gateway(
        plan,
        batcher.ask,
        incarnation=secrets.randbits(INCARNATION_BITS),  # another one than of any process before
        features=("explore", "zlib", "zstd") if served.explore else ("zlib", "zstd"),
        key=_key(served.run_dir),
        forget=lambda slot: forget(slot),
        version=lambda: batcher.version,
    )

    def forget(slot: int) -> None:
        """A session is over."""
        batcher.forget(slot)
        policy.begins_again = not gateway.num_sessions

    return plan, GatewayServer(gateway, access), batcher, policy


def _plan_of_task(plan: Plan, name: str) -> Plan:
    """The plan of a run that had one of its tasks alone."""
    (task,) = (one for one in plan.env_spec.tasks if one.name == name)
    env = task_env(task)
    own = env_spec(env)
    agent = one_task_config(plan.agent, plan.env_spec)
    spec = agent_spec(agent, own)
    return dataclasses.replace(
        plan,
        config=dataclasses.replace(plan.config, env=env),
        env=env,
        env_spec=own,
        agent=agent,
        spec=spec,
        columns=own.columns(spec.extras),
    )


def _build_policy(plan: Plan, weights: _CheckpointWeights, served: Served) -> _ServedPolicy:
    """The policy, with its weights, after a first decision."""
    import torch

    from worldloom.algorithms.registry import make_policy

    torch.set_num_threads(1)
    policy = make_policy(
        plan.agent,
        plan.env_spec,
        device=served.device,
        seed=role_seed(plan, "evaluation_policy"),
    )
    server = _ServedPolicy(policy, weights, explore=served.explore)
    version = weights.version()
    server.refresh()
    assert server.version == version
    obs = {key: spec.zeros(1) for key, spec in plan.env_spec.obs.items()}
    policy.act(obs, policy.initial_carry(1), np.ones(1, bool), explore=False)
    server.begins_again = True
    return server


def _key(run_dir: Path) -> bytes:
    """The run's key, so that sessions outlive this process; where it cannot be kept, another."""
    try:
        return load_key(run_dir / KEY_FILE)
    except OSError:
        return secrets.token_bytes(32)


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("worldloom_dist").setLevel(logging.INFO)
    served = Served(
        run_dir=options.run_dir,
        port=options.port,
        checkpoint=options.checkpoint,
        explore=options.explore,
        follow=options.follow,
        device=options.device,
        env=options.env,
        task=options.task,
        gateway=GatewayConfig(
            host=usable_loopback(options.host),
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
            token_file=options.token_file,
            client_ca=options.client_ca,
        ),
    )

    async def run(trust_env: bool) -> None:
        """Until a signal comes."""
        until = asyncio.Event()
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, until.set)
        await serve(dataclasses.replace(served, trust_env=trust_env), until=until)

    try:
        with stdout_to_stderr():
            with_consent(lambda trust: asyncio.run(run(trust)), trust_env=options.trust_env)
    except CheckpointError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except WorldLoomError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigurationError | MissingDependencyError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called("serve"),
        description="Answer programs anywhere with the policy of a checkpoint, over gRPC.",
    )
    parser.add_argument("run_dir", type=Path, help="a run folder, or one of its checkpoints")
    add: Any = parser.add_argument
    add("--port", type=int, default=50051, help="to listen on; 0 takes a free one (50051)")
    add("--checkpoint", default="newest", help="newest, best, or a folder name (newest)")
    add("--explore", action="store_true", help="let clients ask for the noise of training")
    add("--follow", action="store_true", help="take up newer checkpoints as the run writes them")
    add("--device", default="cpu", help="where the policy acts (cpu)")
    add("--env", default=None, help="which env, for a run that was trained from files only")
    add("--task", default=None, help="of a run of several tasks: which one is served")
    add("--trust-env", action="store_true", help="run env code of a folder made elsewhere")
    add("--host", default="127.0.0.1", help="another than the loopback needs TLS and a token")
    add("--tls-cert", default=None, help="file with the certificate chain, PEM")
    add("--tls-key", default=None, help="file with its private key, PEM")
    add("--token-file", default=None, help="file with the bearer token that clients show")
    add("--client-ca", default=None, help="file with who signs clients' certificates, PEM")
    return parser


if __name__ == "__main__":
    sys.exit(main())
