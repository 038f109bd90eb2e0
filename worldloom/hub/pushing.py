"""``worldloom push RUN USER/NAME``: an agent on a hub, with all that makes it of use to others.

What is pushed is a run folder without its replay, so that every command that takes a run takes it:

    README.md                      the card
    config.json summary.json       of the run, without paths of this machine
    checkpoints/NAME/              JSON and safetensors; at the top where there is no run
    policy.json                    the contract; with an exported policy its files
    curve.png film.mp4 | film.gif  where there are some
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from worldloom.core.damage import reading
from worldloom.core.exceptions import ConfigurationError, MissingDependencyError
from worldloom.core.fields import Bounds, checked
from worldloom.core.files import expanded, write_json
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import lies_in, read_plain
from worldloom.distributed import distributed
from worldloom.export import contract
from worldloom.export.exporting import CONTRACT, FILES, PARITY, RUNNER
from worldloom.hub.card import Card, Score
from worldloom.hub.fetching import HubAddress, client, told
from worldloom.training.runs import CHECKPOINTS, CONFIG_FILE, TrainedRun, find_run, run_facts
from worldloom.training.saved_agents import SavedAgent

__all__ = ["Pushed", "push"]

LOCAL = ("run_dir", "resume", "metrics_auth_file", "address", "init_from")
"""Settings of a run that mean something on its machine only; so do two sections."""
LOCAL_SECTIONS = ("gateway", "placement")
SOURCES = ("load", "held_out")
"""Settings of ``replay`` that name files."""
MESSAGES = ("error", "eager", "quarantined", "imports_left_out")
"""Of ``summary.json``: what was said of a failure, which may name anything."""
OURS = [
    f"{CHECKPOINTS}/*",
    *("manifest.json", "tree.json", "tensors.safetensors", CONFIG_FILE, "summary.json"),
    *("policy.*", PARITY, RUNNER, "curve.png", "film.*"),
]
"""What a push may write: what lies there and is not pushed again goes, or an old agent would act
under a new card.
"""
SAME = ("run_id", "checkpoint", "train_steps")
"""Of the origin: what an exported policy and a checkpoint have in common that are one agent."""
FILMS = (".mp4", ".gif")
MOST_FILM_BYTES = 32 << 20
LONGEST_LICENSE = 64


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What was pushed.

    Attributes:
        url: Of the commit.
        files: Their names.
        notes: What is missing, and why; a sentence each.
    """

    url: str
    files: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _Staging:
    """A folder that becomes the repository."""

    place: Path
    notes: list[str] = field(default_factory=list)


def push(
    path_or_run: str | PathLike[str],
    repo: str,
    *,
    private: bool = False,
    episodes: int | None = None,
    needs_score: bool = True,
    license: str = "mit",
) -> Pushed:
    """Put an agent on a hub; the repository is made if it is missing.

    Args:
        path_or_run: A run folder, a checkpoint in it, or what ``Agent.save`` wrote.
        repo: ``USER/NAME``, with or without ``hf://``.
        private: Make a repository that others do not see.
        episodes: Play this many in the run's env for the card; by default the card has the score of
            the run's last evaluation.
        needs_score: False pushes an agent that was never evaluated, and the card says so.
        license: Of the weights, as hubs spell it.

    Raises:
        ConfigurationError: If an argument is wrong, there is no token or no score.
        CheckpointError: If the agent cannot be read.
        HubError: If the hub cannot be reached, or fails.
        MissingDependencyError: If ``huggingface_hub`` is not installed.
    """
    address = HubAddress.of(repo)
    if address.revision is not None:
        raise ConfigurationError(
            f"repo: a revision is what a hub makes of a push, got {repo!r}; leave @REVISION out"
        )
    checked("episodes", episodes, int | None, Bounds(1))
    if not license.strip() or len(license) > LONGEST_LICENSE or "\n" in license:
        raise ConfigurationError(
            f"license must be a short name as hubs have it, for example mit, got {license!r}"
        )
    place = expanded(path_or_run, "path_or_run")
    hub = client("push")
    if hub.get_token() is None:
        raise ConfigurationError(
            "there is no token to push with; set HF_TOKEN to one that may write, or run hf auth "
            "login"
        )
    saved = SavedAgent.read(place)
    run = _run_of(saved)
    score = _score(place, saved, run, episodes)
    if score is None and needs_score:
        raise ConfigurationError(
            f"{place} was never evaluated, so its card would have no score; play for it "
            "(--episodes 10), or push without one (--without-score)"
        )
    with tempfile.TemporaryDirectory(prefix="wl-push-") as temporary:
        staging = _Staging(Path(temporary))
        _fill(staging, saved, run, address, score, license)
        files = sorted(
            str(p.relative_to(temporary)) for p in staging.place.rglob("*") if p.is_file()
        )
        with told(address):
            api = hub.HfApi(library_name="worldloom")
            api.create_repo(address.repo, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=address.repo,
                folder_path=staging.place,
                delete_patterns=OURS,  # what an earlier push left
                commit_message=f"Push {saved.agent['name']} in {saved.env.name}",
            )
    return Pushed(url=str(done.commit_url), files=tuple(files), notes=tuple(staging.notes))


def _run_of(saved: SavedAgent) -> TrainedRun | None:
    """The run of a checkpoint; None for one without."""
    folder = saved.path.absolute().parent
    return find_run(saved.path) if run_facts(folder.parent) is not None else None


def _score(
    place: Path, saved: SavedAgent, run: TrainedRun | None, episodes: int | None
) -> Score | None:
    if episodes is not None:
        if run is None:
            raise ConfigurationError(
                f"episodes: {place} lies outside of its run, whose evaluator plays; push the run "
                "folder, or leave --episodes out"
            )
        module = distributed("evaluate", "push --episodes")
        found = module.evaluate(run.folder, checkpoint=saved.path.name, episodes=episodes)
        return Score.of(found)
    if run is None:
        return None
    summary = _read(run.folder, "summary.json")
    if place == run.folder or saved.path.name == run.newest()[0].name:
        return Score.of(summary.get("eval"))
    if saved.origin.get("score") is not None:
        return Score.of({"return_mean": saved.origin["score"], "episodes": _episodes(run)})
    return None


def _episodes(run: TrainedRun) -> int:
    return int(run.facts["run"].get("eval_episodes") or 1)


def _fill(
    staging: _Staging,
    saved: SavedAgent,
    run: TrainedRun | None,
    address: HubAddress,
    score: Score | None,
    license: str,
) -> None:
    place = staging.place
    curve = film = command = versions = ""
    folder = place
    if run is not None:
        name = saved.path.name
        if name == "best":  # which is a copy of one with a name
            name = f"step-{int(saved.origin.get('train_steps') or 0):012d}"
        folder = place / CHECKPOINTS / name
        folder.parent.mkdir()
        write_json(place / CONFIG_FILE, _shareable(run.facts))
        summary = _read(run.folder, "summary.json")
        shared = {key: value for key, value in summary.items() if key not in MESSAGES}
        write_json(place / "summary.json", {**shared, "eval": _evaluation(summary, score)})
        curve = _curve(staging, run.folder)
        film = _film(staging, run.folder)
        command = _command(run.folder)
        versions = _text(run.folder, "versions.txt")
    saved.write(folder)
    described, has_onnx = _contract(staging, saved, run, folder)
    card = Card(
        address=address,
        contract=described,
        score=score,
        license=license,
        command=command,
        versions=versions,
        curve=curve,
        film=film,
        runs_without_torch=has_onnx,
    )
    (place / "README.md").write_text(card.text(), encoding="utf-8")


def _evaluation(summary: Mapping[str, Any], score: Score | None) -> Any:
    """The score as ``summary.json`` has it, with what the run knew of it."""
    if score is None:
        return None
    known = {"return_mean": score.mean, "return_std": score.std, "episodes": score.episodes}
    return {**(summary.get("eval") or {}), **known}


def _shareable(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The run's settings without what belongs to its machine."""
    run = {key: value for key, value in facts["run"].items() if key not in LOCAL_SECTIONS}
    run |= {name: None for name in LOCAL if name in run}
    learner = run.get("learner")
    if isinstance(learner, dict):
        run["learner"] = {**learner, "checkpoints": None}
    replay = run.get("replay")
    if isinstance(replay, dict):
        named = {key: replay[key] for key in SOURCES if isinstance(replay.get(key), str)}
        run["replay"] = replay | {key: _file_names(text) for key, text in named.items()}
    return {**facts, "run": run}


def _contract(
    staging: _Staging, saved: SavedAgent, run: TrainedRun | None, folder: Path
) -> tuple[dict[str, Any], bool]:
    """``policy.json``, with the exported policy that lies in the run, if it is of this checkpoint;
    and whether that runs without torch.
    """
    exported = (saved.path if run is None else run.folder) / "policy"
    found = {} if run is None else _read(run.folder, f"policy/{CONTRACT}")
    made_of = found.get("run") or {}
    made_of = made_of if isinstance(made_of, dict) else {}
    if run is not None and all(made_of.get(key) == saved.origin.get(key) for key in SAME):
        with reading(exported, "is no whole export of a policy; export it again"):
            for name in found["files"]:
                if not lies_in(run.folder, exported / Path(name).name):
                    raise ValueError(f"{Path(name).name} is missing, or no file that lies there")
                shutil.copyfile(exported / Path(name).name, staging.place / Path(name).name)
            return found, found["file"] == FILES["onnx"]
    described = contract.describe(saved, steps_per_second=None, env_id=None)
    described["file"] = str((folder / "tensors.safetensors").relative_to(staging.place))
    write_json(staging.place / CONTRACT, described)
    if found:
        staging.notes.append(
            f"the exported policy in {exported} is of another checkpoint, and is left out; export "
            "it again"
        )
    return described, False


def _curve(staging: _Staging, run: Path) -> str:
    try:
        figure = distributed("plot.figure", "a curve")
        runs = distributed("plot.runs", "a curve")
        figure.plot_runs([runs.read_run(run)], staging.place / "curve.png")
    except (MissingDependencyError, ConfigurationError) as error:
        staging.notes.append(f"the card has no curve: {error}")
        return ""
    return "curve.png"


def _film(staging: _Staging, run: Path) -> str:
    """The newest film of an episode."""
    films = [
        path
        for path in (run / "videos").glob("*")
        if path.suffix in FILMS and not path.name.startswith("open_loop") and lies_in(run, path)
    ]
    if not films:
        return ""
    newest = max(films, key=lambda path: path.name)  # names count the steps
    if newest.stat().st_size > MOST_FILM_BYTES:
        staging.notes.append(f"the card has no film: {newest} has more than 32 MiB")
        return ""
    name = f"film{newest.suffix}"
    shutil.copyfile(newest, staging.place / name)
    return name


def _command(run: Path) -> str:
    """How the run was started, and gone on with, without what belongs to its machine."""
    lines = _text(run, "command.txt").splitlines()
    commands = (_portable(line.partition("  ")[2] or line) for line in lines)
    return "\n".join(dict.fromkeys(commands))


def _portable(line: str) -> str:
    """A command line without flags that mean something on its machine only."""
    try:
        words = iter(shlex.split(line))
    except ValueError:  # it was written by hand
        return ""
    kept = []
    for word in words:
        flag, is_whole, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--"):
            kept.append(word)
        elif name in (*LOCAL, "learner.checkpoints") or name.partition(".")[0] in LOCAL_SECTIONS:
            if not is_whole:
                next(words, "")
        elif name in [f"replay.{source}" for source in SOURCES]:
            kept += [flag, _file_names(value if is_whole else next(words, ""))]
        else:
            kept.append(word)
    return shlex.join(kept)


def _file_names(sources: str) -> str:
    """``/data/a.npz,lerobot:/data/b?obs/eye=c`` -> ``a.npz,lerobot:b?obs/eye=c``."""
    names = (source.partition("?") for source in sources.split(","))
    return ",".join(re.sub(r"[^:]*/", "", path) + mark + query for path, mark, query in names)


def _text(run: Path, name: str) -> str:
    """A file of the run; empty where there is none, or a link leads elsewhere."""
    if not lies_in(run, run / name):
        return ""
    try:
        return read_plain(run / name).decode()
    except (OSError, ValueError):
        return ""


def _read(run: Path, name: str) -> dict[str, Any]:
    try:
        found = parse_json(_text(run, name))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
