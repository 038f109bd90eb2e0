"""From a run folder of ``worldloom_dist``, or a checkpoint in it, to the world model that the run
trained.

    RUN/config.json          object ``run``: a run; ``agent`` and ``env`` say which networks
    RUN/checkpoints/NAME/    manifest.json, tree.json, tensors.safetensors

Needs torch only when a model is loaded, and never ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldloom.algorithms.registry import make_agent_config, trained_config, trained_weights
from worldloom.core.config_base import WorldModelConfig, check_conflicts
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import read_plain
from worldloom.core.specs import EnvSpec

if TYPE_CHECKING:
    from worldloom.training.checkpoints import CheckpointStore

__all__ = ["TrainedRun", "find_run", "run_facts"]

CONFIG_FILE = "config.json"
MANIFEST_FILE = "manifest.json"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run folder, and which of its checkpoints is meant.

    Attributes:
        folder: Of the run.
        facts: What its ``config.json`` holds.
        checkpoint: Name of a checkpoint; None is the newest that can be read.
    """

    folder: Path
    facts: dict[str, Any]
    checkpoint: str | None = None

    def config(self, device: str = "cpu") -> WorldModelConfig:
        """Settings of the world model that the run trains.

        Raises:
            CheckpointError: If ``config.json`` does not say which agent and env.
            ConfigurationError: If the public API has no such model, for example for several
                observation keys.
        """
        try:
            settings = dict(self.facts["agent"])
            env = EnvSpec.from_dict(self.facts["env"])
            name = settings.pop("name")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{self.folder / CONFIG_FILE}: does not say which agent and env the run has "
                f"({error!r}); give the folder of a whole run"
            ) from error
        return trained_config(make_agent_config(name, settings), env, device)

    def load(self, device: str, wanted: Mapping[str, Any] | None = None) -> Any:
        """The world model with the weights of the checkpoint, on a device.

        Args:
            device: As in the model's config.
            wanted: Settings that it must have.

        Raises:
            ConfigurationError: If it has other settings than the wanted ones.
            CheckpointError: If there is no checkpoint, or it is damaged or of another architecture.
        """
        from worldloom.algorithms.model_registry import WorldModelRegistry

        config = self.config(device)
        check_conflicts(self.folder, config, wanted or {})
        path, tree = self._tree()
        try:
            weights = trained_weights(self.facts["agent"]["name"], tree["learner"]["agent"])
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: holds no agent of {self.facts['agent']['name']} ({error!r} is missing); "
                "give another checkpoint"
            ) from error
        model = WorldModelRegistry.build(config)
        _check_shapes(path, model.state_dict(), weights)
        model.load_state_dict(weights)
        return model

    def _tree(self) -> tuple[Path, dict[str, Any]]:
        """The checkpoint and what it holds."""
        from worldloom.training.tree_files import load_tree

        store = self._store()
        if self.checkpoint is not None:
            path = store.find(self.checkpoint)
            return path, load_tree(path)
        found = store.newest()
        if found is None:
            there = "none that can be read" if store.folders() else "no checkpoint"
            raise CheckpointError(
                f"{self.folder} is a run with {there} in {store.root}; let it train until it "
                "writes one"
            )
        return found

    def newest(self) -> tuple[Path, dict[str, Any], dict[str, Any]]:
        """The checkpoint that is meant, what it holds, and what its manifest says.

        Raises:
            CheckpointError: If there is none that can be read.
        """
        path, tree = self._tree()
        return path, tree, self._store().facts(path)

    def _store(self) -> CheckpointStore:
        from worldloom.training.remote_checkpoints import open_store

        learner = self.facts["run"].get("learner")
        elsewhere = learner.get("checkpoints") if isinstance(learner, dict) else None
        return open_store(elsewhere or self.folder / CHECKPOINTS)


def find_run(path: Path) -> TrainedRun | None:
    """What a folder is to a run: the run itself, its ``checkpoints``, or one of them; None when it
    is something else.

    Raises:
        ConfigurationError: If it is a checkpoint that does not lie in its run folder.
    """
    facts = run_facts(path)
    if facts is not None:
        return TrainedRun(path, facts)
    if path.name == CHECKPOINTS and (facts := run_facts(path.parent)) is not None:
        return TrainedRun(path.parent, facts)
    if not (path / MANIFEST_FILE).exists():
        return None
    place = path.absolute().parent
    facts = run_facts(place.parent) if place.name == CHECKPOINTS else None
    if facts is None:
        raise ConfigurationError(
            f"{path} is a checkpoint outside of its run, whose config.json says which networks it "
            "holds; give RUN/checkpoints/NAME, with the run's config.json in RUN"
        )
    return TrainedRun(place.parent, facts, path.name)


def run_facts(folder: Path) -> dict[str, Any] | None:
    """What the ``config.json`` of a run says; None where there is no run."""
    try:
        found = parse_json(read_plain(folder / CONFIG_FILE))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("run"), dict) else None


def _check_shapes(path: Path, ours: Any, theirs: Any) -> None:
    for name in sorted(ours.keys() | theirs.keys()):
        shapes = [tuple(group[name].shape) if name in group else None for group in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{path}: tensor {name!r}: expected shape {shapes[0]} by the run's config.json, "
                f"got {shapes[1]}; the two are of different runs"
            )
