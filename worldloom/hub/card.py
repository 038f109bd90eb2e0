"""The model card: what a person reads of an agent on a hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worldloom.hub.fetching import HubAddress

__all__ = ["Card", "Score"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What an evaluation found.

    Attributes:
        mean, std: Of the episodes' returns.
        episodes: How many.
    """

    mean: float
    std: float
    episodes: int

    @classmethod
    def of(cls, evaluation: Mapping[str, Any] | None) -> Score | None:
        """Of an evaluation as ``summary.json`` has it; None where it says no return."""
        found = evaluation or {}
        try:
            return cls(
                mean=float(found["return_mean"]),
                std=float(found.get("return_std") or 0.0),
                episodes=int(found.get("episodes") or len(found.get("returns", ())) or 1),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def __str__(self) -> str:
        return f"{self.mean:.1f} +- {self.std:.1f} over {self.episodes} episodes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A card.

    Attributes:
        address: Where the agent will lie.
        contract: As ``policy.json`` has it.
        score: None where it was not evaluated.
        license: Of the weights.
        command: By which it was trained; empty where it is not known.
        versions: Of the packages that trained it, one per line.
        curve, film: Names of pictures beside the card; empty where there is none.
        runs_without_torch: An exported policy lies beside the card.
    """

    address: HubAddress
    contract: Mapping[str, Any]
    score: Score | None
    license: str
    command: str = ""
    versions: str = ""
    curve: str = ""
    film: str = ""
    runs_without_torch: bool = False

    def text(self) -> str:
        """``README.md``."""
        return "\n".join(
            [*self._head(), *self._facts(), *self._use(), *self._pictures(), *self._origin()]
        )

    @property
    def _agent(self) -> str:
        return str(self.contract["agent"]["name"])

    @property
    def _env(self) -> str:
        return str(self.contract["env"]["name"])

    def _head(self) -> list[str]:
        """Metadata that a hub reads; a JSON text is a YAML text."""
        tags = ["reinforcement-learning", "world-model", self._agent.partition(":")[0], self._env]
        lines = [
            "---",
            f"license: {json.dumps(self.license)}",
            "library_name: worldloom",
            "pipeline_tag: reinforcement-learning",
            f"tags: {json.dumps(tags)}",
        ]
        if self.score is not None:
            result = {
                "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
                "dataset": {"name": self._env, "type": self._env},
                "metrics": [
                    {"type": "mean_reward", "name": "mean_reward", "value": self.score.mean}
                ],
            }
            index = [{"name": self._agent, "results": [result]}]
            lines.append(f"model-index: {json.dumps(index)}")
        return [*lines, "---", ""]

    def _facts(self) -> list[str]:
        run = self.contract["run"]
        rows: Sequence[tuple[str, Any]] = (
            ("Return", self.score or "not evaluated"),
            ("Env steps", run.get("env_steps")),
            ("Updates", run.get("train_steps")),
            ("Run", run.get("run_id")),
            ("Checkpoint", run.get("checkpoint")),
        )
        table = [f"| {name} | {value} |" for name, value in rows if value is not None]
        title = f"# {self._agent} in {self._env}"
        return [title, "", "A world-model agent.", "", "| | |", "|---|---|", *table, ""]

    def _use(self) -> list[str]:
        lines = [
            "## Use it",
            "",
            "```python",
            "import worldloom  # pip install 'worldloom[hub]'",
            "",
            f'agent = worldloom.load_agent("{self.address}")',
            "obs, info = env.reset()",
            "agent.reset()",
            "obs, *_ = env.step(agent.act(obs))",
            "```",
            "",
            "```",
            f"worldloom evaluate {self.address}",
            f"worldloom train --init-from {self.address} --agent {self._agent} --env {self._env}",
            "```",
            "",
            "`policy.json` says what goes in and what comes out: names, shapes, types, bounds, how "
            "often it decides. Weights are safetensors, settings JSON; nothing is unpickled.",
            "",
        ]
        if self.runs_without_torch:
            lines += ["Without torch: `python run_policy.py` (numpy, onnxruntime, gymnasium).", ""]
        return lines

    def _pictures(self) -> list[str]:
        lines = [f"![Return over env steps]({self.curve})", ""] if self.curve else []
        if self.film.endswith(".gif"):
            lines += [f"![An episode]({self.film})", ""]
        elif self.film:
            lines += [f'<video src="{self.film}" controls></video>', ""]
        return lines

    def _origin(self) -> list[str]:
        lines = ["## Trained by", ""]
        if self.command:
            lines += ["```", self.command, "```", ""]
        versions = self.versions or "\n".join(
            f"{name} {version}" for name, version in self.contract["versions"].items()
        )
        return [*lines, "```", versions.strip(), "```", ""]
