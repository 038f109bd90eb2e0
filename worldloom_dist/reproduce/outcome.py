"""What is written of a published result that was run: one file with the curves of all seeds and the
comparison, and a picture.

    NAME.jsonl     a line ``result``, then of every run a line ``run`` and its ``episode`` and
                   ``eval`` lines, then the ``comparison`` lines
    NAME.png       the picture
    NAME-seedN/    the run folder of a seed
    NAME-authors-seedN/
                   of the authors' code
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldloom.core.files import replacing, write_text
from worldloom.core.json_text import read_object, to_json
from worldloom_dist.reproduce.comparison import AUTHORS, OURS, compared, comparison_table
from worldloom_dist.reproduce.peers import peer_records
from worldloom_dist.reproduce.picture import draw
from worldloom_dist.reproduce.record import run_records
from worldloom_dist.reproduce.targets import Target, flags
from worldloom_dist.run.claim import choose_folder
from worldloom_dist.run.cli import parse, read_config
from worldloom_dist.run.presets import config_changes

__all__ = ["Outcome"]


class Outcome:
    """The files of a result.

    Args:
        target: What is run.
        root: Folder of all results.
        is_smoke: Whether it only shows that the path works.
    """

    def __init__(self, target: Target, root: Path, *, is_smoke: bool) -> None:
        self.target = target
        self.is_smoke = is_smoke
        self.run_dir = root / target.name.replace("/", "-")

    @property
    def picture(self) -> Path:
        """The plot."""
        return self.run_dir.with_name(f"{self.run_dir.name}.png")

    @property
    def curve(self) -> Path:
        """The curves and the comparison."""
        return self.run_dir.with_name(f"{self.run_dir.name}.jsonl")

    def folder(self, seed: int) -> Path:
        """The run folder of a seed, as ``worldloom train --seeds`` names it."""
        return self.run_dir.with_name(f"{self.run_dir.name}-seed{seed}")

    def peer_folder(self, seed: int) -> Path:
        """Where the authors' code writes."""
        return self.run_dir.with_name(f"{self.run_dir.name}-authors-seed{seed}")

    def is_complete(self, seeds: Sequence[int]) -> bool:
        """Whether our run of every seed has come to the end that was fixed."""
        return all(self._reached(seed) for seed in seeds)

    def changes(self, seed: int) -> list[str] | None:
        """Settings that the run in a seed's folder has otherwise; None where there is no run.

        Raises:
            ConfigurationError: If the folder cannot be written, or its run not be read.
        """
        wanted = parse([*flags(self.target.settings), "--run-dir", str(self.run_dir)])
        may_differ = ["seed ", "metrics_port "]
        if wanted.agent_overrides.get("precision") == "auto":  # it was chosen when the run began
            may_differ.append("agent.precision ")
        folder = self.folder(seed)
        if not choose_folder(dataclasses.replace(wanted, run_dir=folder, if_exists="resume"))[1]:
            return None
        return [
            change
            for change in config_changes(read_config(folder), wanted)
            if not change.startswith(tuple(may_differ))
        ]

    def seeds(self) -> list[int]:
        """Of every run of this result that there is, ours or the authors'."""
        pattern = re.compile(re.escape(self.run_dir.name) + r"-(?:authors-)?seed(\d+)")
        names = [path.name for path in self.run_dir.parent.glob(f"{self.run_dir.name}-*")]
        return sorted({int(found[1]) for name in names if (found := pattern.fullmatch(name))})

    def write(self) -> list[str]:
        """Write curve, comparison and picture of what there is; returns what a person is told.

        Runs of other seeds than those of this command are among it, where their settings are the
        same.
        """
        records: list[dict[str, Any]] = []
        for seed in self.seeds():
            if (self.folder(seed) / "summary.json").exists() and not self.changes(seed):
                own = run_records(self.folder(seed))
                records += [{"by": OURS, "seed": seed, **record} for record in own]
            theirs = peer_records(self.target, seed, self.peer_folder(seed))
            records += [{"by": AUTHORS, "seed": seed, **record} for record in theirs]
        if not records:
            return []
        rows = compared(self.target, records)
        seeds = sorted({record["seed"] for record in records})
        lines = [self._head(seeds), *records, *rows]
        write_text(self.curve, "".join(to_json(line) + "\n" for line in lines))
        with replacing(self.picture) as path:
            draw(self.target, records, path, self._note(records))
        return [
            "",
            *(comparison_table(rows) if rows else ["nothing to compare yet"]),
            "",
            *self._said_of_runs(records),
            f"curve    {self.curve}",
            f"picture  {self.picture}",
        ]

    def _reached(self, seed: int) -> bool:
        try:
            summary = read_object(self.folder(seed) / "summary.json")
        except (OSError, ValueError):
            return False
        reached = int(summary.get("env_steps", 0))
        return summary.get("status") == "completed" and reached >= self.target.env_steps

    def _head(self, seeds: Sequence[int]) -> dict[str, Any]:
        published = self.target.curve()
        return {
            "kind": "result",
            "name": self.target.name,
            "env_steps": self.target.env_steps,
            "seeds": list(seeds),
            "measured": self.target.measured,
            "published": published.source if published else None,
            "differs": self.target.differs,
            "is_smoke": self.is_smoke,
        }

    def _note(self, records: Sequence[dict[str, Any]]) -> str:
        published = self.target.curve()
        parts = []
        if published and (first := min(published.curve.steps)) > self.target.env_steps:
            parts.append(f"Nothing was published before {first:,.0f} env steps.")
        if self.target.differs:
            parts.append(f"Differs: {self.target.differs}.")
        if self.is_smoke:
            parts.append("A smoke run: it proves nothing.")
        hours = sum(record["hours"] for record in records if record["kind"] == "run")
        return " ".join([*parts, f"{hours:.1f} hours in all."])

    def _said_of_runs(self, records: Sequence[dict[str, Any]]) -> list[str]:
        return [
            f"{'ours' if r['by'] == OURS else 'authors'!s:<9}seed {r['seed']}: {r['status']}, "
            f"{r['env_steps']:,} env steps in {r['hours']:.2f} h on {r['machine']['cpu']}"
            for r in records
            if r["kind"] == "run"
        ]
