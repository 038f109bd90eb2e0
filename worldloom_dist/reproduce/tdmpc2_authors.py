"""The TD-MPC2 authors' training loop on the CPU, one thread, and what its logger is told as JSON
lines. Started as a program by ``peers``, with the Python that has their packages: nothing of ours
is imported here.

    python tdmpc2_authors.py CHECKOUT FOLDER '{"task": "cup-catch", "steps": 20000, "seed": 1}'

Their code runs from a copy below FOLDER in which device names are replaced; models, losses, buffer,
planner and loop are theirs. At the end of every episode the whole state is written, so that a loop
that was stopped goes on from there. The evaluation at the start, of an untrained agent, is left
out; the last one is theirs, and is made after the loop where that ends within an episode.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["main", "settings_of"]

REPLACED = (
    ("cuda:0", "cpu"),
    ("capturable=True", "capturable=False"),
    ("torch.cuda.mem_get_info()", "(0, 0)"),
)
EPISODES = "episodes.jsonl"
STATE = "state.pt"
DONE = "done"
ACTION_REPEAT = 2
"""Of their DMControl envs."""


def main(words: list[str] | None = None) -> int:
    """Train to the end; returns the exit status."""
    checkout, folder, text = sys.argv[1:] if words is None else words
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ["LAZY_LEGACY_OP"] = "0"
    place = Path(folder).absolute()
    place.mkdir(parents=True, exist_ok=True)
    code = _copied(Path(checkout).absolute(), place / "code")
    here = str(Path(__file__).absolute().parent)
    sys.path[:] = [str(code), *(entry for entry in sys.path if entry != here)]
    _train(code, place, json.loads(text))
    (place / DONE).touch()
    return 0


def settings_of(code: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Their ``config.yaml`` with what is wanted, as their parser completes it.

    Args:
        code: Folder of their modules.
        wanted: Names of their settings -> values; ``model_size`` chooses one of their sizes.
    """
    found: dict[str, Any] = {}
    for line in (code / "config.yaml").read_text().splitlines():
        match = re.match(r"^(\w+): ([^#?]+)$", line)
        if match:
            found[match[1]] = _scalar(match[2].strip())
    sizes = importlib.import_module("common").MODEL_SIZE
    found |= wanted
    found |= sizes[int(found["model_size"])]
    found |= {key: value for key, value in wanted.items() if key != "model_size"}
    found["bin_size"] = (found["vmax"] - found["vmin"]) / (found["num_bins"] - 1)
    found |= {"multitask": False, "task_dim": 0, "tasks": [found["task"]], "compile": False}
    found |= {"save_video": False, "save_agent": False, "enable_wandb": False}
    return found


def _train(code: Path, place: Path, wanted: dict[str, Any]) -> None:
    import numpy as np
    import torch

    torch.set_num_threads(1)
    seed = int(wanted["seed"])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    prefill = wanted.pop("seed_steps", None)
    settings = settings_of(code, wanted)
    settings["eval_freq"] = settings["steps"]
    config = SimpleNamespace(**settings)
    config.get = lambda name, default=None: getattr(config, name, default)
    env = importlib.import_module("envs").make_env(config)
    if prefill is not None:
        config.seed_steps = prefill
    agent = importlib.import_module("tdmpc2").TDMPC2(config)
    buffer = importlib.import_module("common.buffer").Buffer(config)
    logger = _Logger(place, config)
    loop = importlib.import_module("trainer.online_trainer").OnlineTrainer
    trainer = loop(cfg=config, env=env, agent=agent, buffer=buffer, logger=logger)
    logger.watch(trainer)
    logger.go_on()
    trainer.train()
    if not logger.has_evaluated:  # their loop evaluates between episodes only
        logger.log({**trainer.eval(), "step": config.steps}, "eval")


class _Logger:
    """In the place of theirs: one line per finished episode and evaluation, and the state.

    Their loop logs an episode before it stores it: the state has its rows beside the stored ones.
    """

    video = None

    def __init__(self, place: Path, config: Any) -> None:
        self._place = place
        self._repeat = ACTION_REPEAT
        self._config = config
        self._episodes: list[Any] = []
        self._began = time.monotonic()
        self._hours_before = 0.0
        self.has_evaluated = False

    def watch(self, trainer: Any) -> None:
        """Keep what the buffer is given, and evaluate the trained agent only."""
        self._trainer = trainer
        add = trainer.buffer.add
        evaluate = trainer.eval

        def add_and_keep(episode: Any) -> Any:
            """Store an episode, and keep it for the state."""
            self._episodes.append(episode.clone())
            return add(episode)

        def evaluate_the_trained() -> dict[str, Any]:
            """Their evaluation with the return of every episode."""
            if not trainer._step:
                return {}
            with _counted_returns(trainer.env) as returns:
                found: dict[str, Any] = evaluate()
            return {**found, "returns": returns}

        trainer.buffer.add = add_and_keep
        trainer.eval = evaluate_the_trained

    def log(self, values: dict[str, Any], category: str) -> None:
        """Their loop tells of an episode or an evaluation."""
        if category == "eval" and "returns" not in values:
            return
        step = int(values["step"])
        record: dict[str, Any] = {"kind": "eval" if category == "eval" else "episode"}
        record |= {"env_steps": self._repeat * step, "hours": round(self._hours(), 4)}
        if category == "eval":
            record["returns"] = values["returns"]
            self.has_evaluated = True
        else:
            record["return"] = float(values["episode_reward"])
            record |= {"length": len(self._trainer._tds) - 1, "ended": "last"}
        with (self._place / EPISODES).open("a") as file:
            file.write(json.dumps(record) + "\n")
        if category == "train":
            self._save(step)

    def finish(self, agent: Any = None) -> None:
        """Their loop is at its end."""

    def _hours(self) -> float:
        return self._hours_before + (time.monotonic() - self._began) / 3600

    def _save(self, step: int) -> None:
        import numpy as np
        import torch

        trainer = self._trainer
        state = {
            "step": step,
            "hours": self._hours(),
            "episodes": [*self._episodes, torch.cat(trainer._tds)],
            "model": trainer.agent.model.state_dict(),
            "scale": trainer.agent.scale.state_dict(),
            "optimizers": [one.state_dict() for one in _optimizers(trainer.agent)],
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),
            "python": random.getstate(),
            "env": _task_random(trainer.env).get_state(),
            "actions": trainer.env.action_space.np_random.bit_generator.state,
        }
        temporary = self._place / (STATE + ".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self._place / STATE)

    def go_on(self) -> None:
        """Restore the state of a loop that was stopped; without one nothing happens.

        Their loop begins with step 0 and a reset; the step of the state is put in at that reset.
        """
        import numpy as np
        import torch

        path = self._place / STATE
        if not path.exists():
            return
        # written by this very program, in a folder of the run
        state = torch.load(path, weights_only=False)
        trainer = self._trainer
        self._hours_before = state["hours"]
        _forget_beyond(self._place / EPISODES, self._repeat * state["step"])
        for episode in state["episodes"]:
            trainer._ep_idx = trainer.buffer.add(episode)
        trainer.agent.model.load_state_dict(state["model"])
        trainer.agent.scale.load_state_dict(state["scale"])
        for optimizer, saved in zip(_optimizers(trainer.agent), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        env = trainer.env
        reset = env.reset

        def reset_and_go_on() -> Any:
            """The first reset of the loop."""
            env.reset = reset
            trainer._step = state["step"]
            torch.set_rng_state(state["torch"])
            np.random.set_state(state["numpy"])
            random.setstate(state["python"])
            _task_random(env).set_state(state["env"])
            env.action_space.np_random.bit_generator.state = state["actions"]
            return env.reset()

        env.reset = reset_and_go_on


@contextlib.contextmanager
def _counted_returns(env: Any) -> Iterator[list[float]]:
    """The return of every episode that is played in the block."""
    returns: list[float] = []
    reset = env.reset
    step = env.step

    def counted_reset() -> Any:
        """Begin another return."""
        returns.append(0.0)
        return reset()

    def counted_step(action: Any) -> Any:
        """Add to the last one."""
        result = step(action)
        returns[-1] += float(result[1])
        return result

    env.reset = counted_reset
    env.step = counted_step
    try:
        yield returns
    finally:
        env.reset = reset
        env.step = step


def _optimizers(agent: Any) -> list[Any]:
    return [agent.optim, agent.pi_optim]


def _task_random(env: Any) -> Any:
    """The random state of the task behind all wrappers."""
    while not hasattr(getattr(env, "task", None), "random"):
        env = env.env
    return env.task.random


def _forget_beyond(path: Path, env_steps: int) -> None:
    """Leave out lines of episodes that are played again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if _env_steps_of(line) <= env_steps]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


def _env_steps_of(line: str) -> float:
    try:
        return float(json.loads(line)["env_steps"])
    except (ValueError, KeyError):  # cut short by a kill
        return float("inf")


def _copied(checkout: Path, code: Path) -> Path:
    """Their modules with device names replaced."""
    shutil.rmtree(code, ignore_errors=True)
    shutil.copytree(checkout / "tdmpc2", code)
    for file in code.rglob("*.py"):
        text = file.read_text()
        for old, new in REPLACED:
            text = text.replace(old, new)
        file.write_text(text)
    return code


def _scalar(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text) if re.search(r"[.e]", text) else int(text.replace("_", ""))
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())
