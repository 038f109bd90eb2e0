"""The checkpoints of a run: folders of :mod:`worldloom.training.tree_files`, by their step.

A folder whose manifest or checksum does not fit is skipped by :meth:`CheckpointStore.newest`, with
a warning that says what is wrong. Facts are read without torch.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import CheckpointError
from worldloom.core.files import current, remove_folder, replacing_together
from worldloom.core.plain_files import names_in
from worldloom.training.manifests import FILES, read_manifest, write_manifest, writing

__all__ = ["CheckpointStore", "score_of"]

logger = logging.getLogger(__name__)

SCORED = "scored.tmp"
"""Where a best checkpoint is written, before it is ``best``."""


def _link(source: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def score_of(facts: Mapping[str, Any]) -> float:
    """Of a best checkpoint; minus infinity where its facts, perhaps foreign ones, have none."""
    score = facts.get("score")
    return float(score) if isinstance(score, (int, float)) else -math.inf


def _always(facts: Mapping[str, Any]) -> bool:
    return True


@dataclass
class CheckpointStore:
    """The checkpoints of one run: the newest ``keep`` and the best one.

    Args:
        root: Folder that holds the checkpoint folders; made when first written to.
        keep: How many of the newest stay.
        compares: Whether the score of a best checkpoint with these facts compares with new ones;
            one that does not is replaced by any.
    """

    root: Path
    keep: int = 3
    compares: Callable[[Mapping[str, Any]], bool] = _always

    def save(
        self, step: int, tree: Mapping[str, Any], facts: Mapping[str, Any] | None = None
    ) -> Path:
        """Write a checkpoint named after ``step``; drop those that are too old, and what a killed
        writer left half done.
        """
        from worldloom.training.tree_files import save_tree  # torch is needed from here on only

        folder = self.root / f"step-{step:012d}"
        save_tree(folder, tree, {"step": step, **(facts or {})})
        saved = [path for path in self.folders() if path.name <= folder.name]  # later ones: damaged
        for old in saved[self.keep :]:
            remove_folder(old)
        for abandoned in self.root.glob("*.tmp"):
            shutil.rmtree(abandoned, ignore_errors=True)
        return folder

    def save_best(self, tree: Mapping[str, Any], facts: Mapping[str, Any], score: float) -> bool:
        """Keep as ``best`` what no checkpoint was written of, if its score is above that of the
        present one. It is not among :meth:`folders`: nothing goes on from it.
        """
        from worldloom.training.tree_files import save_tree

        if not math.isfinite(score) or score <= self.best_score():
            return False
        folder = self.root / SCORED
        save_tree(folder, tree, facts)
        is_best = self.mark_best(folder, score)
        remove_folder(folder)
        return is_best

    def mark_best(self, folder: Path, score: float) -> bool:
        """Keep a copy of ``folder`` as ``best`` if its score is above that of the present one (or
        there is no whole one).
        """
        if not math.isfinite(score):
            logger.warning("%s: its score is %s, which cannot be the best", folder, score)
            return False
        if score <= self.best_score():
            return False
        manifest = read_manifest(folder)
        manifest["facts"]["score"] = score
        with writing(self.root / "best"), replacing_together(self.root / "best") as staging:
            for name in FILES:
                _link(current(folder, name), staging / name)
            write_manifest(staging, manifest)
        return True

    def best_score(self) -> float:
        """Score of the present best checkpoint; minus infinity when there is none, or it is
        damaged or no comparison.
        """
        try:
            facts = self.facts(self.find("best"))
        except CheckpointError:
            return -math.inf
        return score_of(facts) if self.compares(facts) else -math.inf

    def folders(self) -> list[Path]:
        """Checkpoint folders, newest first; unfinished ones are not among them.

        Raises:
            CheckpointError: If there may be some, but the folder that they are in cannot be listed.
        """
        try:
            names = names_in(self.root)
        except OSError as error:
            raise CheckpointError(
                f"{self.root} cannot be listed ({error.strerror}), so its checkpoints are not "
                "known; give the rights to read it, or bring back the disk that it leads to"
            ) from error
        found = (name for name in names if name.startswith("step-") and not name.endswith(".tmp"))
        return [self.root / name for name in reversed(list(found))]

    def size(self, folder: Path) -> int:
        """Bytes of a checkpoint's files, without the manifest."""
        return sum(file["bytes"] for file in read_manifest(folder)["files"].values())

    def facts(self, folder: Path) -> dict[str, Any]:
        """What the caller of :meth:`save` noted in the manifest.

        Raises:
            CheckpointError: If there is none.
        """
        return dict(read_manifest(folder)["facts"])

    def find(self, name: str) -> Path:
        """The folder of the checkpoint ``name`` (``best``, or a folder's name).

        Raises:
            CheckpointError: If there is none.
        """
        path = self.root / name
        if not path.is_dir():
            known = sorted(p.name for p in self.root.glob("*") if p.is_dir())
            raise CheckpointError(
                f"{path} does not exist; there are {', '.join(known) or 'no checkpoints'}"
            )
        return path

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that loads, or None; a corrupt one is skipped with a warning."""
        from worldloom.training.tree_files import load_tree

        for folder in self.folders():
            try:
                tree = load_tree(folder)
            except CheckpointError as error:
                logger.warning("skipping a checkpoint: %s", error)
            else:
                return folder, tree
        return None
