"""Export a trained policy: a file that another runtime runs, its contract, and the proof that it
decides as the agent does.

    FOLDER/policy.onnx | policy.pt2 | policy.safetensors
    FOLDER/policy.json      the contract
    FOLDER/parity.json      the comparison
    FOLDER/run_policy.py    acts with the ONNX model; needs numpy and onnxruntime

The files appear together, or none does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from worldloom.algorithms.registry import (
    agent_spec,
    make_agent_config,
    make_step,
    own_field,
)
from worldloom.core.error_text import first_line
from worldloom.core.exceptions import CheckpointError, ConfigurationError, WorldLoomError
from worldloom.core.fields import NOT_NEGATIVE, Bounds, checked
from worldloom.core.files import expanded, replacing_together, write_json
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import read_plain
from worldloom.envs.consent import check_env_code
from worldloom.envs.wrappers import RawEnv
from worldloom.export import contract, tracing
from worldloom.export.graph import PolicyGraph
from worldloom.export.onnx_models import quantized, runner_of
from worldloom.export.parity import TOLERANCE, Parity, Run, check, compare
from worldloom.export.recording import (
    Played,
    RandomObs,
    Source,
    opened,
    record,
    steps_per_second,
)
from worldloom.hub.fetching import located
from worldloom.training.one_task import for_task
from worldloom.training.saved_agents import SavedAgent

__all__ = ["FILES", "Exported", "Format", "Precision", "export_policy"]

Format = Literal["onnx", "torch", "safetensors"]
Precision = Literal["float32", "bf16", "int8"]
FILES: Mapping[str, str] = {
    "onnx": "policy.onnx",
    "torch": "policy.pt2",
    "safetensors": "policy.safetensors",
}
"""Format -> the file with the policy."""
CONTRACT, PARITY, RUNNER = "policy.json", "parity.json", "run_policy.py"
MOST_SAMPLES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        files: Their names, the policy first.
        contract: What ``policy.json`` says.
        parity: How the comparison went; None for weights alone.
        leaves_search_out: True where the agent itself searches, and what was exported does not.
    """

    folder: Path
    files: tuple[str, ...]
    contract: Mapping[str, Any]
    parity: Parity | None
    leaves_search_out: bool = False


def export_policy(
    path_or_run: str | PathLike[str],
    folder: str | PathLike[str],
    *,
    format: Format = "onnx",
    planner: bool = False,
    samples: int | None = None,
    precision: Precision = "float32",
    decisions: int = 1000,
    observations: Literal["env", "random"] = "env",
    seed: int = 0,
    trust_env: bool = False,
    task: str | None = None,
) -> Exported:
    """Write a trained policy for other runtimes, and compare it with the agent.

    Args:
        path_or_run: As for :func:`worldloom.load_agent`.
        folder: Where the files go; made, or one that holds an exported policy.
        format: ``onnx``, ``torch`` (a program of ``torch.export``), or ``safetensors`` (weights
            alone, without the graph).
        planner: Of TD-MPC2: search as the agent does, instead of the policy prior alone.
        samples: Of the planner: action sequences per iteration, those of the prior included; by
            default as in training.
        precision: ``float32``; of ONNX also ``bf16`` (weights) or ``int8`` (dynamic quantization),
            where the policy still decides as the agent does.
        decisions: How many are compared.
        observations: ``env`` lets the agent play in its env; ``random`` draws from the observation
            space, where the env cannot be built.
        seed: Of episodes and draws.
        trust_env: Let the agent play in the env, if that is a Python module, also where the agent
            was made elsewhere.
        task: Of an agent of several tasks, the name of the one in which the policy acts.

    Raises:
        ConfigurationError: If a setting is wrong, the agent cannot be exported, or the file decides
            otherwise; nothing is written then.
        CheckpointError: If the agent cannot be read, or a file cannot be written.
        MissingDependencyError: If a package is missing.
        EnvFailureError: If the env fails.
    """
    place = expanded(folder, "folder")
    checked("format", format, Format)
    checked("precision", precision, Precision)
    checked("observations", observations, Literal["env", "random"])
    checked("decisions", decisions, int, Bounds(1))
    checked("seed", seed, int, NOT_NEGATIVE)
    checked("task", task, str | None)
    _check_options(format, precision, planner=planner, samples=samples)
    _check_folder(place)
    if format == "onnx":
        tracing.needs_onnx()
    saved = SavedAgent.read(located(path_or_run, "path_or_run"))
    saved.check_code(trust_env=trust_env)
    if observations == "env" and format != "safetensors":
        check_env_code(saved.path, saved.env.played, saved.agent_module, trust_env=trust_env)
    saved = for_task(saved, task)
    if format == "safetensors":
        return _weights_alone(saved, place)
    saved = _configured(saved, samples)
    name = str(saved.agent["name"])
    policy, step = make_step(name, saved.build(device="cpu", seed=seed), planner=planner)
    graph = PolicyGraph(step, saved.env, saved.spaces(), saved.env_config())
    with _observed(saved, observations, seed) as (source, facts):
        recording = record(saved, policy, graph, source, decisions)
    program, takes_any_batch = tracing.program_of(graph, name)
    with _written(place) as staging:
        path = staging / FILES[format]
        with _by_runtime(name, precision):
            run = _save(program, graph, name, path, precision)
            parity = compare(
                run,
                recording,
                graph,
                runtime="onnxruntime" if format == "onnx" else "torch.export",
                tolerance=TOLERANCE[precision],
                observations=source.name,
            )
        check(parity, f"precision: {path.name} in {precision}")
        described = contract.describe(saved, **facts) | contract.graph_facts(
            graph, file=path.name, precision=precision, takes_any_batch=takes_any_batch
        )
        files = _write_beside(staging, described, parity, runs=format == "onnx")
    config = make_agent_config(name, {k: v for k, v in saved.agent.items() if k != "name"})
    searches = agent_spec(config, saved.env).acting == "planner"
    return Exported(
        folder=place,
        files=files,
        contract=described,
        parity=parity,
        leaves_search_out=searches and not planner,
    )


def _check_options(format: str, precision: str, *, planner: bool, samples: int | None) -> None:
    checked("samples", samples, int | None, Bounds(1, MOST_SAMPLES))
    if precision != "float32" and format != "onnx":
        raise ConfigurationError(
            f"precision {precision} is for format onnx, and the format is {format}; leave it out"
        )
    if samples is not None and not planner:
        raise ConfigurationError(
            f"samples: {samples} action sequences are for the planner, and the policy prior acts "
            "alone; add --planner, or leave --samples out"
        )
    if planner and format == "safetensors":
        raise ConfigurationError(
            "planner: format safetensors holds the weights alone, those of the planner included; "
            "leave --planner out"
        )


def _check_folder(folder: Path) -> None:
    """Refuse to write beside what is not ours."""
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"folder: {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONTRACT).is_file():
        raise ConfigurationError(
            f"folder: {folder} holds something else than an exported policy; name a folder that "
            "does not exist"
        )


def _configured(saved: SavedAgent, samples: int | None) -> SavedAgent:
    """The agent with another number of samples, and in float32."""
    settings = dict(saved.agent)
    config = make_agent_config(settings["name"], {k: v for k, v in settings.items() if k != "name"})
    wanted: dict[str, Any] = {}
    if samples is not None:
        if own_field(config, "num_samples") not in settings:
            raise ConfigurationError(
                f"samples: {settings['name']} has no planner; leave --samples out"
            )
        wanted["num_samples"] = samples
    if settings.get("precision") == "bfloat16":
        wanted["precision"] = "float32"
    return dataclasses.replace(saved, agent={**settings, **wanted})


@contextlib.contextmanager
def _observed(
    saved: SavedAgent, observations: str, seed: int
) -> Iterator[tuple[Source, dict[str, Any]]]:
    """Where observations come from, and what the env says of itself."""
    if observations == "random":
        yield RandomObs(saved.spaces()[0], seed), {"steps_per_second": None, "env_id": None}
        return
    config = saved.env_config()
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(_buildable(opened(config)))
        spec = getattr(raw.env, "spec", None)
        facts = {
            "steps_per_second": steps_per_second(raw.env),
            "env_id": getattr(spec, "id", None),
        }
        yield Played(raw, config, seed), facts


@contextlib.contextmanager
def _buildable(env: contextlib.AbstractContextManager[RawEnv]) -> Iterator[RawEnv]:
    try:
        raw = env.__enter__()
    except WorldLoomError as error:
        raise ConfigurationError(
            f"the policy is compared in its env, which cannot be built here ({error}); make it "
            "importable, or compare on random observations: --observations random"
        ) from error
    try:
        yield raw
    finally:
        env.__exit__(None, None, None)


@contextlib.contextmanager
def _by_runtime(agent: str, precision: str) -> Iterator[None]:
    """The runtime may refuse a model that it was given a moment ago, and it says so in its own
    words.
    """
    try:
        yield
    except Exception as error:  # the edge: the runtime's errors have no common class
        if not type(error).__module__.startswith("onnx"):
            raise
        raise ConfigurationError(
            f"precision: agent {agent!r} in {precision} is not run by onnxruntime "
            f"({first_line(error)}); use --precision float32, or --format torch"
        ) from error


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[Path]:
    """A folder to write files to, which take their place together."""
    before = _listed(folder)
    try:
        with replacing_together(folder) as staging:
            yield staging
            now = {path.name for path in staging.iterdir()}
        for name in before - now:  # of another format; no contract names it any more
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error.strerror or error}); what was there before is "
            "unchanged"
        ) from error


def _listed(folder: Path) -> set[str]:
    """Files of an earlier export."""
    try:
        names = parse_json(read_plain(folder / CONTRACT))["files"]
        return {name for name in names if name in {*FILES.values(), PARITY, RUNNER}}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _save(program: Any, graph: PolicyGraph, agent: str, path: Path, precision: str) -> Run:
    """Write the policy, and read it back as a function."""
    if path.suffix == ".pt2":
        tracing.save_program(program, path)
        return tracing.load_program(path)
    if precision == "float32":
        tracing.save_onnx(program, graph, agent, path)
    else:
        whole = path.with_name("float32.onnx")
        tracing.save_onnx(program, graph, agent, whole)
        quantized(whole, path, precision)
        whole.unlink()
    return runner_of(path)


def _write_beside(
    staging: Path, described: dict[str, Any], parity: Parity | None, *, runs: bool
) -> tuple[str, ...]:
    """Contract, comparison and runner; returns the names of all files."""
    names = [described["file"], CONTRACT]
    if parity is not None:
        write_json(staging / PARITY, parity.to_dict())
        names.append(PARITY)
    if runs:
        shutil.copyfile(Path(__file__).with_name("runner.py"), staging / RUNNER)
        names.append(RUNNER)
    described["files"] = names
    write_json(staging / CONTRACT, described)
    return tuple(names)


def _weights_alone(saved: SavedAgent, place: Path) -> Exported:
    weights = saved.weights()
    tensors = [
        {"name": entry.name, "shape": list(entry.shape), "dtype": entry.dtype}
        for entry in weights.entries
    ]
    described = contract.describe(saved, steps_per_second=None, env_id=None)
    described |= {"file": FILES["safetensors"], "tensors": tensors}
    with _written(place) as staging:
        (staging / FILES["safetensors"]).write_bytes(weights.to_bytes())
        files = _write_beside(staging, described, None, runs=False)
    return Exported(folder=place, files=files, contract=described, parity=None)
