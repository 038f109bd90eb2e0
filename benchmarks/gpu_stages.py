"""The stages of ``gpu.py``: each is a function of a device that returns what it found."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldloom.algorithms.registry import AgentConfig, make_agent, make_agent_config, make_policy
from worldloom.core.protocol import Agent
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.windows import SampledWindows
from worldloom.envs.config import EnvConfig
from worldloom.nn.kernels import has_kernels
from worldloom.nn.kernels.availability import SWITCH, kernel_problem
from worldloom.training.checkpoints import CheckpointStore
from worldloom_dist.actors.act_graphs import capture_decisions
from worldloom_dist.learner.checkpointing import CheckpointWriter
from worldloom_dist.learner.learner import Learner
from worldloom_dist.learner.process_group import TorchProcessGroup, open_store
from worldloom_dist.learner.step import (
    CaptureFailedError,
    GraphStep,
    Step,
    make_step,
    prepare_torch,
)
from worldloom_dist.learner.weight_store import WeightStore

CONTROL: dict[str, Any] = {"episode_limit": 500, "may_terminate": False}
SIX = {"action": ArraySpec((6,))}
VECTOR = EnvSpec(name="vector", obs={"obs": ArraySpec((24,))}, action=SIX, **CONTROL)
EPISODIC = EnvSpec(
    name="episodic",
    obs={"obs": ArraySpec((11,))},
    action={"action": ArraySpec((3,))},
    episode_limit=1000,
)
IMAGE = EnvSpec(
    name="image",
    obs={"obs": ArraySpec((64, 64, 3), "uint8")},
    action={"action": ArraySpec((), "int64", (6,))},
    episode_limit=1000,
)
STACK = EnvSpec(name="stack", obs={"obs": ArraySpec((64, 64, 9), "uint8")}, action=SIX, **CONTROL)
SMALL: dict[str, dict[str, Any]] = {
    "dreamerv3": {
        "deter": 32,
        "hidden": 8,
        "stoch": 4,
        "classes": 4,
        "units": 8,
        "depth": 2,
        "blocks": 4,
        "bins": 41,
        "batch_size": 2,
        "batch_length": 5,
        "imagine_length": 2,
    },
    "tdmpc2": {
        "latent_dim": 16,
        "encoder_dim": 16,
        "mlp_dim": 16,
        "batch_size": 4,
        "num_samples": 8,
        "num_elites": 2,
        "num_policy_samples": 2,
        "iterations": 2,
    },
}
"""Sizes of the agents where only the script itself is tried."""
PEAK_FLOPS = 989e12
"""Dense bfloat16 of an H100 or H200 (SXM), by its data sheet."""
SAME = 1e-3
"""Largest difference of captured and eager weights, relative to the largest of a tensor."""


@dataclass(frozen=True)
class Place:
    """Where, and how thoroughly.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        is_small: Short stages.
    """

    device: str
    is_small: bool = False

    @property
    def is_cuda(self) -> bool:
        """True for a GPU."""
        return self.device.startswith("cuda")

    def sync(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, large: float) -> float:
        """How long to measure."""
        return 0.01 if self.is_small else large


def columns(agent: Agent, env: EnvSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """One batch of noise, with ends and beginnings of episodes in it."""
    rng = np.random.default_rng(seed)
    sampling = agent.spec.sampling
    lead = (sampling.batch_size, sampling.window_rows)
    made: dict[str, np.ndarray] = {}
    for name, spec in env.columns(agent.spec.extras).items():
        shape = (*lead, *spec.shape)
        if spec.num_classes:
            made[name] = rng.integers(0, spec.num_classes[0], shape).astype(spec.dtype)
        elif spec.dtype == "uint8":
            made[name] = rng.integers(0, 256 if spec.is_image else 4, shape).astype(np.uint8)
        elif spec.dtype.startswith("float"):
            made[name] = rng.uniform(-1, 1, shape).astype(spec.dtype)
        else:
            made[name] = np.zeros(shape, spec.dtype)
    made["is_first"][:, sampling.window_rows // 2] = rng.random(lead[0]) < 0.3
    made["terminated"][:, -1] = rng.random(lead[0]) < 0.2
    return made


def windows(agent: Agent, env: EnvSpec, seed: int = 0) -> SampledWindows:
    """The same as replay gives it."""
    sampling = agent.spec.sampling
    count = sampling.batch_size
    ids = np.arange(count * sampling.window_rows).reshape(count, -1)
    zeros = np.zeros(count, np.int64)
    return SampledWindows(columns(agent, env, seed), ids, zeros, zeros, np.full(count, time.time()))


def batch(place: Place, agent: Agent, env: EnvSpec, seed: int = 0) -> SequenceBatch:
    """The same on the device."""
    return SequenceBatch.from_columns(
        {
            name: torch.from_numpy(column).to(place.device)
            for name, column in columns(agent, env, seed).items()
        }
    )


def agent_of(place: Place, name: str, env: EnvSpec, seed: int = 0, **settings: Any) -> Agent:
    """A fresh agent on the device."""
    return make_agent(config_of(place, name, **settings), env, device=place.device, seed=seed)


def config_of(place: Place, name: str, **settings: Any) -> AgentConfig:
    """Settings of an agent, small ones where the place is."""
    small = SMALL[name.partition(":")[0]] if place.is_small else {}
    return make_agent_config(name, small | settings)


def timed(place: Place, work: Callable[[], Any], seconds: float, warm: int = 6) -> dict[str, Any]:
    """Milliseconds of one call, the device's work included."""
    for _ in range(1 if place.is_small else warm):
        work()
    place.sync()
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times) < (1 if place.is_small else 3):
        began = time.perf_counter()
        work()
        place.sync()
        times.append(1e3 * (time.perf_counter() - began))
    return {"ms_median": statistics.median(times), "ms_min": min(times), "calls": len(times)}


def is_captured(step: Step) -> bool:
    """True when updates are replayed."""
    return isinstance(step, GraphStep) and step.is_captured


def difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The largest relative difference of two sets of tensors."""
    worst = 0.0
    for name, tensor in one.items():
        scale = float(other[name].abs().max()) or 1.0
        worst = max(worst, float((tensor - other[name]).abs().max()) / scale)
    return worst


def equality(place: Place, name: str, env: EnvSpec) -> dict[str, Any]:
    """A captured update is an eager one, draws included."""
    settings: dict[str, Any] = {"precision": "float32"}
    if name.startswith("dreamerv3"):
        settings |= {"eps": 1e-3, "warmup": 0}  # or rounding alone makes full steps
    eager, captured = (agent_of(place, name, env, 3, **settings) for _ in range(2))
    step = make_step(captured, place.device, "auto")
    for number in range(2 if place.is_small else 8):
        data = batch(place, eager, env, number)
        plain, replayed = eager.train_step(data), step(data)
    losses = {
        key: [float(value), float(replayed.metrics[key])]
        for key, value in plain.metrics.items()
        if "loss" in key
    }
    worst = difference(captured.policy_tensors(), eager.policy_tensors())  # type: ignore[attr-defined]
    return {
        "is_graph": is_captured(step),
        "worst": worst,
        "is_same": worst < SAME,
        "losses": losses,
    }


@contextmanager
def switched(kernels: str) -> Iterator[None]:
    """The fused kernels ``on`` or ``off``."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = kernels
    try:
        yield
    finally:
        del os.environ[SWITCH]
        if before is not None:
            os.environ[SWITCH] = before


def kernels(place: Place, name: str, env: EnvSpec) -> dict[str, Any]:
    """Whether the fused kernels work; one update with them beside one without, and the milliseconds
    of one of the agent ``name``, captured. Where a draw lies between two classes rounding decides,
    so small networks are compared.
    """
    device = torch.device(place.device)
    began = time.monotonic()
    found: dict[str, Any] = {"problem": kernel_problem(device) if place.is_cuda else "no GPU"}
    found["trial_s"] = round(time.monotonic() - began, 2)
    exact = {"precision": "float32", "eps": 1e-3, "warmup": 0}
    updated: dict[str, Any] = {}
    for way in ("off", "on"):
        with switched(way):
            small = agent_of(place, "dreamerv3:ci", env, 3, **exact)
            small.train_step(batch(place, small, env))
            updated[way] = small.policy_tensors()  # type: ignore[attr-defined]
            agent = agent_of(place, name, env)
            data = batch(place, agent, env)
            step = make_step(agent, place.device, "auto")
            found[way] = timed(place, lambda step=step, data=data: step(data), place.seconds(3.0))
            found[way]["is_graph"] = is_captured(step)
            found[way]["is_used"] = has_kernels(device)
    found["worst"] = difference(updated["on"], updated["off"])
    found["is_same"] = found["worst"] < SAME
    return found


def update(place: Place, name: str, env: EnvSpec) -> dict[str, Any]:
    """Milliseconds per update, eager and captured; memory, replayed steps/s, use of the GPU."""
    found: dict[str, Any] = {}
    for mode in ("off", "auto"):
        agent = agent_of(place, name, env)
        data = batch(place, agent, env)
        if place.is_cuda:
            torch.cuda.reset_peak_memory_stats(place.device)
        step = make_step(agent, place.device, mode)  # type: ignore[arg-type]
        began = time.monotonic()
        seconds = place.seconds(4.0)
        found[mode] = timed(place, lambda step=step, data=data: step(data), seconds)
        found[mode]["first_s"] = round(time.monotonic() - began - seconds, 2)
        found[mode]["is_graph"] = is_captured(step)
        if place.is_cuda:
            found[mode]["peak_gb"] = torch.cuda.max_memory_allocated(place.device) / 1e9
    best_s = min(one["ms_median"] for one in found.values()) / 1e3
    found["replayed_steps_per_s"] = agent.spec.sampling.trained_positions / best_s
    try:
        from torch.utils.flop_counter import FlopCounterMode

        counted = agent_of(place, name, env)
        with FlopCounterMode(display=False) as counter:
            counted.train_step(data)
        found["tflop"] = counter.get_total_flops() / 1e12
        found["mfu_bf16"] = counter.get_total_flops() / best_s / PEAK_FLOPS
    except (ImportError, RuntimeError) as error:
        found["tflop"] = f"not counted: {error}"[:200]
    return found


def decision(place: Place, name: str, env: EnvSpec) -> dict[str, Any]:
    """Milliseconds per decision as an inference server makes it, numpy in and out."""
    sizes = (1, 4) if place.is_small else (1, 16, 64)
    found: dict[str, Any] = {}
    for way in ("eager", "graph") if place.is_cuda else ("eager",):
        policy = make_policy(config_of(place, name), env, device=place.device)
        if way == "graph":
            capture_decisions(policy, place.device, sizes)
        for rows in sizes:
            obs = {key: spec.zeros(rows) for key, spec in env.obs.items()}
            state = {"carry": policy.initial_carry(rows)}
            later = np.zeros(rows, bool)

            def act(policy=policy, obs=obs, state=state, later=later) -> None:  # type: ignore[no-untyped-def]
                state["carry"] = policy.act(obs, state["carry"], later, explore=True).carry

            found[f"{way}_{rows}"] = timed(place, act, place.seconds(1.2), warm=4)["ms_median"]
    return found


@contextmanager
def feeding(learner: Learner, pool: list[SampledWindows]) -> Iterator[Callable[[], Any]]:
    """Staged batches from a thread of their own, as in a run."""
    ready: queue.Queue[Any] = queue.Queue(2)
    stop = threading.Event()

    def feed() -> None:
        number = 0
        while not stop.is_set():
            item = learner.stager.stage(pool[number % len(pool)])
            number += 1
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    try:
        yield ready.get
    finally:
        stop.set()
        thread.join(5)


def learner(place: Place, name: str, env: EnvSpec) -> dict[str, Any]:
    """The learner as it runs (staged by another thread, publishing, a checkpoint, latents written
    back) beside itself on one batch that is there already.
    """
    agent = agent_of(place, name, env)
    own = Learner(agent, WeightStore(), device=place.device)
    written: list[int] = []
    own.write_back = lambda _, refreshed: written.append(len(refreshed))
    pool = [windows(agent, env, seed) for seed in range(4)]
    ready = own.stager.stage(pool[0])
    staged = timed(place, lambda: own.train(ready), place.seconds(3.0))
    stalls: list[float] = []
    with tempfile.TemporaryDirectory() as folder, feeding(own, pool) as take:
        writer = CheckpointWriter(CheckpointStore(Path(folder)), place.device)
        own.train(take())
        place.sync()
        began = time.monotonic()
        count = 0
        published = 0.0
        while time.monotonic() - began < place.seconds(8.0) or count < 3:
            own.train(take())
            count += 1
            if time.monotonic() - published > 0.25:
                published = time.monotonic()
                own.publish()
            if count == (2 if place.is_small else 20):
                at = time.monotonic()
                writer.save(own.train_steps, own.state_dict(), {})
                stalls.append(1e3 * (time.monotonic() - at))
        place.sync()
        took = time.monotonic() - began
        writer.close()
    rate = count / took
    return {
        "updates_per_s": rate,
        "replayed_steps_per_s": rate * agent.spec.sampling.trained_positions,
        "staged": staged,
        "live_over_staged": rate * staged["ms_median"] / 1e3,
        "checkpoint_stall_ms": stalls,
        "written_back": len(written),
        "metrics": sorted(own.drain_metrics())[:40],
    }


def precision(place: Place, name: str, env: EnvSpec) -> dict[str, Any]:
    """Losses of one update in bfloat16 beside those in float32, on equal draws."""
    found: dict[str, Any] = {}
    for kind in ("float32", "bfloat16"):
        agent = agent_of(place, name, env, precision=kind)
        output = agent.train_step(batch(place, agent, env))
        found[kind] = {
            key: float(value)
            for key, value in output.metrics.items()
            if key.startswith(("loss", "grad"))
        }
    return found


def run(place: Place, name: str) -> dict[str, Any]:
    """A whole run in this process, at one update per env step; without its envs' packages."""
    from worldloom_dist.lockstep.runtime import LocalRuntime
    from worldloom_dist.run.folder import RunFolder
    from worldloom_dist.run.loop import Run
    from worldloom_dist.run.plan import resolve
    from worldloom_dist.run.presets import PRESETS
    from worldloom_dist.run.report import Report
    from worldloom_dist.run.signals import StopFlag

    base = PRESETS["debug"]()
    config = dataclasses.replace(
        base,
        env=EnvConfig(env="toy:point"),
        runtime="local",
        env_steps=120 if place.is_small else 1500,
        eval_every=0,
        eval_episodes=2 if place.is_small else 10,
        metrics_port=0,
        learner=dataclasses.replace(base.learner, device=place.device),
        agent=name,
        agent_overrides=SMALL["tdmpc2"] | {"prefill_agent_steps": 100} if place.is_small else {},
    )
    resolved = resolve(config)
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path) / "run")
        folder.hold()
        folder.open(config, resolved.env_spec.to_dict(), {})
        report = Report(resolved, folder, {})
        stop = StopFlag()
        runtime = LocalRuntime(resolved, folder, report, 0, stop)
        status = Run(resolved, folder, report, runtime, stop).run()
        summary = json.loads(folder.summary_path.read_text())
    wanted = ("eval", "throughput", "train_steps", "wall_time_s", "env_steps")
    return {"status": status, **{key: summary[key] for key in wanted}}


def ranks(place: Place) -> dict[str, Any]:
    """A group of one rank: its transport, hooks and buckets; eager updates beside captured ones."""
    store = open_store("127.0.0.1", 0, 1, is_host=True)
    group = TorchProcessGroup(store, 0, 1, device=place.device)
    found: dict[str, Any] = {}
    try:
        for mode in ("off", "graph") if place.is_cuda else ("off",):
            agent = agent_of(place, "dreamerv3:ci", VECTOR)
            agent.join(group)
            data = batch(place, agent, VECTOR)
            # two, because a group of one is otherwise no group to make_step
            step = make_step(agent, place.device, mode, ranks=2)  # type: ignore[arg-type]
            work = lambda step=step, data=data: step(data)  # noqa: E731
            found[mode] = timed(place, work, place.seconds(1.5))
            found[mode]["is_graph"] = is_captured(step)
        found["broadcast"] = group.broadcast({"a": 1})
    finally:
        group.close()
    return found


def deterministic(place: Place) -> dict[str, Any]:
    """Updates with torch's deterministic algorithms alone; equal seeds give equal weights."""
    found: dict[str, Any] = {}
    cases = (("dreamerv3:ci", VECTOR), ("dreamerv3:ci", IMAGE), ("tdmpc2:ci", VECTOR))
    try:
        prepare_torch(place.device, threads=1, deterministic=True)
        for name, env in (*cases, ("tdmpc2:ci", STACK)):
            try:
                pair = [agent_of(place, name, env) for _ in range(2)]
                for agent in pair:
                    for seed in range(2):
                        agent.train_step(batch(place, agent, env, seed))
                one, other = (agent.policy_tensors() for agent in pair)  # type: ignore[attr-defined]
                is_equal = all(torch.equal(one[key], other[key]) for key in one)
                found[f"{name} {env.name}"] = "equal bits" if is_equal else "other bits"
            except RuntimeError as error:
                found[f"{name} {env.name}"] = str(error)[:200]
    finally:
        prepare_torch(place.device, threads=1)
    return found


def fallback(place: Place) -> dict[str, Any]:
    """What an update that cannot be captured does to the process: it must end the learner. What an
    agent could still do there (draw, free staged memory) is written down, to know how bad it is.
    """
    agent = agent_of(place, "tdmpc2:ci", VECTOR)
    plain = agent.train_step

    def reads(data: SequenceBatch) -> Any:
        output = plain(data)
        if place.is_cuda and torch.cuda.is_current_stream_capturing():
            float(output.metrics["total_loss"])  # waits inside a recording
        return output

    agent.train_step = reads  # type: ignore[method-assign]
    own = Learner(agent, WeightStore(), device=place.device)
    found: dict[str, Any] = {"ended": ""}
    try:
        for number in range(6):
            own.train(windows(agent, VECTOR, number))
    except CaptureFailedError as error:
        found["ended"] = str(error)
    if not place.is_cuda:
        return found
    current = torch.cuda.current_stream(place.device)
    found["is_on_own_stream"] = current == torch.cuda.default_stream(place.device)
    for what, eager in (("same", agent), ("fresh", agent_of(place, "tdmpc2:ci", VECTOR))):
        try:
            after = Learner(eager, WeightStore(), device=place.device, compile="off")
            memory = []
            for number in range(60):
                after.train(windows(eager, VECTOR, number))
                if number in (20, 59):
                    place.sync()
                    memory.append(torch.cuda.memory_allocated(place.device))
            found[f"{what}_agent"] = {"bytes_grown": memory[1] - memory[0]}
        except RuntimeError as error:
            found[f"{what}_agent"] = {"error": str(error)[:200]}
    return found
