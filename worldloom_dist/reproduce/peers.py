"""The authors' code beside ours: their checkout, run with one thread on one core for the same task,
seed and end, and read as our own runs are.

``--peer CHECKOUT`` names it; it is looked at, and its packages are looked for, before anything
runs. Nothing of it is changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldloom.core.cpu import cpu_name
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.files import write_json
from worldloom.core.json_text import read_object
from worldloom_dist.reproduce import tdmpc2_authors
from worldloom_dist.reproduce.targets import Target
from worldloom_dist.run.signals import StopFlag
from worldloom_dist.run.versions import git_commit

__all__ = ["Peer", "find_peer", "peer_records"]

LOOK_WITHIN_S = 120.0
POLL_EVERY_S = 0.2
NOTE_EVERY_S = 60.0
STOP_WITHIN_S = 60.0
RUN = "run.json"
LOG = "log.txt"
LOCK = "lock"
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
WITHOUT_SCREEN = {"MUJOCO_GL": "egl"}
"""Unless the user says how envs render: DreamerV3's do so from state, too."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How the code of some authors is run.

    Attributes:
        home: Where it comes from.
        files: What a checkout of it has.
        packages: What its Python must have; a version behind ``==`` is the beginning of its own.
        precision: In which it makes its products.
        command: Of a target, a seed, the checkout and the folder -> what follows the Python.
        read: Of the folder -> its episodes and evaluations.
    """

    home: str
    files: tuple[str, ...]
    packages: tuple[str, ...]
    precision: str
    command: Callable[[Target, int, Path, Path], list[str]]
    read: Callable[[Path], list[dict[str, Any]]]


def _tdmpc2_command(target: Target, seed: int, checkout: Path, folder: Path) -> list[str]:
    made = target.config()
    repeat = tdmpc2_authors.ACTION_REPEAT
    size = made.agent.partition(":")[2].removesuffix("m")
    wanted: dict[str, Any] = {
        "task": target.task.partition("/")[2],
        "obs": "state",
        "steps": target.env_steps // repeat,
        "seed": seed,
        "eval_episodes": made.eval_episodes,
        "model_size": int(size) if size.isdecimal() else 1,
    }
    if not size.isdecimal():  # a smoke run
        wanted |= {"seed_steps": 510, "num_samples": 64, "num_elites": 8, "num_pi_trajs": 4}
        wanted |= {"batch_size": 32}
    return [tdmpc2_authors.__file__, str(checkout), str(folder), json.dumps(wanted)]


def _tdmpc2_records(folder: Path) -> list[dict[str, Any]]:
    return _json_lines(folder / tdmpc2_authors.EPISODES)


def _dreamerv3_command(target: Target, seed: int, checkout: Path, folder: Path) -> list[str]:
    made = target.config()
    env = made.env.resolved()
    repeat = env.action_repeat or 1
    size = made.agent.partition(":")[2]
    settings: dict[str, Any] = {
        "logdir": folder / "logdir",
        "task": f"dmc_{target.task.partition('/')[2].replace('-', '_')}",
        "seed": seed,
        "env.dmc.repeat": repeat,
        "run.steps": target.env_steps // repeat,
        "run.train_ratio": made.train_ratio,
        "run.envs": made.num_envs,
        "run.report_every": 10**9,
        "run.save_every": 120,
        "jax.platform": "cpu",
        "logger.outputs": "jsonl",
    }
    configs = ["dmc_vision" if made.env.pixels else "dmc_proprio"]
    configs.append("debug" if size == "ci" else size)
    words = [str(checkout / "dreamerv3/main.py"), "--configs", *configs]
    for name, value in settings.items():
        words += [f"--{name}", str(value)]
    return words


def _dreamerv3_records(folder: Path) -> list[dict[str, Any]]:
    """Their ``scores.jsonl``: env steps and score of every finished training episode. Where a run
    went back to its checkpoint, what it had told beyond that is left out: it was played again.
    """
    found: list[dict[str, Any]] = []
    for line in _json_lines(folder / "logdir/scores.jsonl"):
        if "episode/score" in line:
            record = {"kind": "episode", "env_steps": int(line["step"]), "ended": "last"}
            while found and found[-1]["env_steps"] >= record["env_steps"]:
                found.pop()
            found.append({**record, "return": float(line["episode/score"])})
    return found


KINDS: Mapping[str, _Kind] = {
    "tdmpc2": _Kind(
        "github.com/nicklashansen/tdmpc2",
        ("tdmpc2/tdmpc2.py", "tdmpc2/config.yaml", "tdmpc2/trainer/online_trainer.py"),
        ("torch", "tensordict==0.8", "torchrl==0.8", "gymnasium==0.29", "dm-control", "termcolor"),
        "float32",
        _tdmpc2_command,
        _tdmpc2_records,
    ),
    "dreamerv3": _Kind(
        "github.com/danijar/dreamerv3",
        ("dreamerv3/main.py", "dreamerv3/configs.yaml", "embodied/envs/dmc.py"),
        ("jax", "ninjax", "optax", "elements", "portal", "ruamel.yaml", "dm-control"),
        "bfloat16",
        _dreamerv3_command,
        _dreamerv3_records,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The authors' code for one target.

    Attributes:
        target: What it plays, and where it ends.
        checkout: Their code.
        python: That has their packages.
    """

    target: Target
    checkout: Path
    python: str

    def run(self, seed: int, folder: Path, stop: StopFlag) -> bool:
        """Train in a process of its own until the end, or until ``stop``; a loop that was stopped
        goes on.

        Args:
            seed: Of the run.
            folder: Its own; made where it does not exist.
            stop: Asks it to stop.

        Returns:
            Whether it is complete.

        Raises:
            ConfigurationError: If the folder holds another run, or is in use.
            OSError: If the folder cannot be written.
            subprocess.CalledProcessError: If it fails; what it said is in ``log.txt``.
        """
        folder = folder.absolute()
        command = [self.python, *self._kind.command(self.target, seed, self.checkout, folder)]
        folder.mkdir(parents=True, exist_ok=True)
        with _held(folder) as lock:
            facts = self._facts(seed, folder, command)
            if facts["status"] == "completed":
                return True
            return self._run(command, folder, facts, lock, stop)

    def _run(
        self, command: list[str], folder: Path, facts: dict[str, Any], lock: int, stop: StopFlag
    ) -> bool:
        began = time.monotonic()
        before = float(facts["hours"])

        def note(status: str) -> None:
            """Write how far it is, so that a sitting that is killed counts as well."""
            hours = round(before + (time.monotonic() - began) / 3600, 3)
            write_json(folder / RUN, {**facts, "status": status, "hours": hours})

        core = min(os.sched_getaffinity(0))
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**WITHOUT_SCREEN, **os.environ, **ONE_THREAD},
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C reaches it once, through us
                pass_fds=(lock,),  # it holds the folder also when we are killed
            )
            os.sched_setaffinity(process.pid, {core})
            is_stopped = _waited(process, stop, note)
        status = "stopped" if is_stopped else "failed" if process.returncode else "completed"
        note(status)
        if status == "failed":
            raise subprocess.CalledProcessError(process.returncode, command)
        return status == "completed"

    @property
    def _kind(self) -> _Kind:
        return KINDS[self.target.algorithm]

    def _facts(self, seed: int, folder: Path, command: list[str]) -> dict[str, Any]:
        path = folder / RUN
        commit = git_commit(self.checkout, is_ours=False)
        shown = [word.replace(str(folder), ".") for word in command[1:]]
        facts: dict[str, Any] = {
            "agent": f"{self._kind.home} at {commit or 'an unknown commit'}",
            "env": self.target.task,
            "seed": seed,
            "precision": self._kind.precision,
            "command": shown,
            "machine": {"cpu": cpu_name(), "threads": 1, "cores": 1},
            "status": "starting",
            "hours": 0.0,
        }
        if not path.exists():
            write_json(path, facts)
            return facts
        known = read_object(path)
        if known.get("command", [])[1:] != shown[1:]:
            raise ConfigurationError(
                f"--peer: {folder} holds a run of another kind; name another folder with --output"
            )
        if known["status"] != "completed" and known["agent"] != facts["agent"]:
            raise ConfigurationError(
                f"--peer: {folder} was begun with {known['agent']}, and {self.checkout} is at "
                f"{commit or 'an unknown commit'}; check that one out, or name another folder with "
                "--output"
            )
        hours = max(known.get("hours", 0.0), _hours_told(self._kind.read(folder)))
        return {**facts, **known, "hours": hours}


def peer_records(target: Target, seed: int, folder: Path) -> list[dict[str, Any]]:
    """What the authors' code has to show: the run itself, then its episodes and evaluations; empty
    where the folder has no run of this target and seed.
    """
    kind = KINDS.get(target.algorithm)
    if kind is None or not (folder / RUN).is_file():
        return []
    facts = read_object(folder / RUN)
    checkout = Path("/any-checkout")
    words = kind.command(target, seed, checkout, folder.absolute())
    wanted = [word.replace(str(folder.absolute()), ".") for word in words]
    known = list(facts.get("command", []))
    is_same = len(known) == len(wanted) and all(
        one == other or str(checkout) in other
        for one, other in zip(known[1:], wanted[1:], strict=True)
    )
    if not is_same:
        return []
    found = kind.read(folder)
    reached = max((record["env_steps"] for record in found), default=0)
    hours = max(facts["hours"], _hours_told(found))
    # a result goes out into the world: without this machine's folders
    shown = [Path(word).name if word.startswith("/") else word for word in known]
    more = {"command": shown, "env_steps": reached, "hours": hours}
    return [{"kind": "run", **facts, **more}, *found]


def find_peer(target: Target, checkout: Path, python: Path | None) -> Peer:
    """The authors' code, looked over.

    Args:
        target: What it shall play.
        checkout: A checkout of their repository.
        python: That has their packages; ours where it is None.

    Raises:
        ConfigurationError: If no code of the target's authors is known to run, the folder is no
            checkout of it, or a package is missing.
    """
    kind = KINDS.get(target.algorithm)
    if kind is None or not target.task.startswith("dmc/"):
        raise ConfigurationError(
            f"--peer: the authors' code is run for tasks of DMControl, not for {target.name}; "
            "leave --peer out"
        )
    for name in kind.files:
        if not (checkout / name).is_file():
            raise ConfigurationError(
                f"--peer: {checkout} has no {name}; give a checkout of {kind.home}"
            )
    peer = Peer(target=target, checkout=checkout.absolute(), python=str(python or sys.executable))
    missing = _missing(peer.python, kind.packages)
    if missing:
        raise ConfigurationError(
            f"--peer: {peer.python} lacks {', '.join(missing)}, which the code of {kind.home} "
            "needs; install them in an environment, and name its Python with --peer-python"
        )
    return peer


def _missing(python: str, packages: tuple[str, ...]) -> list[str]:
    """Packages that a Python lacks, or has in another version."""
    script = (
        "import json, sys\n"
        "from importlib.metadata import PackageNotFoundError, version\n"
        "def lacks(wanted):\n"
        "    name, _, begin = wanted.partition('==')\n"
        "    try: return not (version(name) + '.').startswith(begin + '.' if begin else '')\n"
        "    except PackageNotFoundError: return True\n"
        "print(json.dumps([name for name in sys.argv[1:] if lacks(name)]))"
    )
    try:
        done = subprocess.run(
            [python, "-c", script, *packages],
            capture_output=True,
            text=True,
            timeout=LOOK_WITHIN_S,
            check=True,
        )
        return list(json.loads(done.stdout))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"--peer-python: {python} cannot be run ({error}); name the Python of an environment "
            "that has the authors' packages"
        ) from error


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[int]:
    """Hold a folder; yields the descriptor of its lock, and who inherits that holds it as well.

    Raises:
        ConfigurationError: If it is held.
    """
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"--peer: the authors' code is at work in {folder} already; wait for it or end it, "
                "or name another folder with --output"
            ) from error
        yield file
    finally:
        os.close(file)


def _hours_told(records: list[dict[str, Any]]) -> float:
    """Up to the last record that says so; 0 where none does."""
    return max((float(record.get("hours", 0.0)) for record in records), default=0.0)


def _waited(process: subprocess.Popen[bytes], stop: StopFlag, note: Callable[[str], None]) -> bool:
    """Wait for a process, and end it when asked to stop; returns whether it was ended."""
    try:
        noted = -math.inf
        while process.poll() is None:
            if time.monotonic() >= noted + NOTE_EVERY_S:
                with contextlib.suppress(OSError):  # not worth the loop
                    note("running")
                noted = time.monotonic()
            if stop.is_set:
                process.terminate()
                process.wait(STOP_WITHIN_S)
                return True
            time.sleep(POLL_EVERY_S)
        return False
    except subprocess.TimeoutExpired:
        return True
    finally:  # also at a second Ctrl-C
        if process.poll() is None:
            process.kill()
            process.wait()


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON; one that is cut short is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
