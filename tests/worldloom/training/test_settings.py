"""Each field of TrainingConfig changes what a run does; a field that no one reads fails here.

Fields that change the weights in the end are tried in test_trainer.py; here are those that change
something else.
"""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from worldloom import create_world_model
from worldloom.core.exceptions import ConfigurationError
from worldloom.training import ReplayBuffer, Trainer, TrainingConfig
from worldloom.training import trainer as trainer_module
from worldloom.training.data import create_random_buffer
from worldloom.training.sources import prefetched

IN_TEST_TRAINER = {
    "optimizer",
    "scheduler",
    "warmup_steps",
    "ema_decay",
    "weight_decay",
    "mixed_precision",
    "grad_clip",
}
IN_TEST_TRAINER |= {"model_overrides", "learning_rate", "seed"}
HERE = {
    "total_steps",
    "batch_size",
    "sequence_length",
    "log_interval",
    "eval_interval",
    "save_interval",
    "output_dir",
    "device",
}
HERE |= {
    "num_workers",
    "prefetch_factor",
    "gradient_checkpointing",
    "eval_batches",
    "eval_episodes_every",
}


def test_every_field_is_tried_here_or_there() -> None:
    assert {f.name for f in dataclasses.fields(TrainingConfig)} == IN_TEST_TRAINER | HERE
    there = (Path(__file__).parent / "test_trainer.py").read_text()
    assert all(f'"{name}": ' in there for name in IN_TEST_TRAINER)


class Watched:
    """A buffer that notes every draw."""

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer = buffer
        self.draws: list[dict[str, Any]] = []

    def sample(
        self,
        batch_size: int,
        seq_len: int,
        device: Any = "cpu",
        *,
        rng: Any = None,
        held_out: Any = None,
    ) -> Any:
        thread = threading.current_thread().name
        self.draws.append({"size": (batch_size, seq_len), "held_out": held_out, "thread": thread})
        return self.buffer.sample(batch_size, seq_len, device, rng=rng, held_out=held_out)

    def has_windows(self, seq_len: int, held_out: Any = None) -> bool:
        return self.buffer.has_windows(seq_len, held_out)


@pytest.fixture(scope="module")
def buffer() -> ReplayBuffer:
    return create_random_buffer(600, (3,), 2, num_episodes=12, episode_length=20, seed=0)


def run(buffer: ReplayBuffer, folder: Path, **changes: Any) -> tuple[Trainer, list[dict[str, Any]]]:
    fields = {
        "total_steps": 4,
        "batch_size": 2,
        "sequence_length": 5,
        "eval_batches": 1,
        "eval_interval": 2,
        "log_interval": 1,
    }
    config = TrainingConfig(**(fields | {"output_dir": str(folder), "device": "cpu"} | changes))
    trainer = Trainer(create_world_model("mlp:ci", obs_shape=(3,), action_dim=2), config)
    watched = Watched(buffer)
    trainer.train(watched)
    return trainer, watched.draws


def held_out(draws: list[dict[str, Any]]) -> int:
    return sum(bool(d["held_out"] and d["held_out"][1]) for d in draws)


def test_sizes_of_batches_and_of_the_run(buffer: ReplayBuffer, tmp_path: Path) -> None:
    trainer, draws = run(buffer, tmp_path, total_steps=3, batch_size=3, sequence_length=7)
    assert {d["size"] for d in draws} == {(3, 7)}
    assert trainer.state.global_step == 3
    with pytest.raises(ConfigurationError, match="total_steps"):
        trainer_module.train(trainer.model, buffer, total_steps=0)


def test_intervals_decide_what_is_written_and_where(buffer: ReplayBuffer, tmp_path: Path) -> None:
    trainer, _ = run(buffer, tmp_path / "a", total_steps=6, log_interval=3, save_interval=4)
    assert [entry["step"] for entry in trainer.history] == [3, 6]
    assert {p.name for p in (tmp_path / "a").glob("checkpoint_[0-9]*")} == {"checkpoint_4.pt"}
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize(
    ("changes", "count"), [({}, 2), ({"eval_interval": 1}, 4), ({"eval_batches": 3}, 6)]
)
def test_evaluations_are_as_many_and_as_large_as_asked(
    changes: dict[str, Any], count: int, buffer: ReplayBuffer, tmp_path: Path
) -> None:
    _, draws = run(buffer, tmp_path, **changes)
    assert held_out(draws) == count
    assert len(draws) == 4 + count


def test_held_out_episodes_are_those_asked_for(buffer: ReplayBuffer, tmp_path: Path) -> None:
    _, draws = run(buffer, tmp_path, eval_episodes_every=3)
    assert {d["held_out"] for d in draws} == {(3, True), (3, False)}
    _, draws = run(buffer, tmp_path, eval_episodes_every=0)
    assert {d["held_out"] for d in draws} == {None}


def test_threads_draw_when_there_are_some_and_as_far_ahead_as_asked(
    buffer: ReplayBuffer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def noted(draw: Any, numbers: range, workers: int, ahead: int) -> Any:
        asked.append((workers, ahead))
        return prefetched(draw, numbers, workers, ahead)

    monkeypatch.setattr(trainer_module, "prefetched", noted)
    _, alone = run(buffer, tmp_path)
    _, helped = run(buffer, tmp_path, num_workers=2, prefetch_factor=3)
    assert asked == [(0, 2), (2, 3)]
    assert not any(d["thread"].startswith("batches") for d in alone)
    assert sum(d["thread"].startswith("batches") for d in helped) == 4


def test_batches_are_drawn_no_further_ahead_than_stated() -> None:
    drawn: list[int] = []
    batches = prefetched(lambda n: drawn.append(n) or {}, range(100), 2, 3)  # type: ignore[func-returns-value]
    next(batches)
    batches.close()  # waits for what was begun
    assert 1 <= len(drawn) <= 2 * 3 + 1


def test_the_device_is_the_model_s_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    model = create_world_model("mlp:ci")
    assert (
        Trainer(model, TrainingConfig(device="meta", output_dir=str(tmp_path))).model.device.type
        == "meta"
    )
    with pytest.raises(ConfigurationError, match="device must be"):
        Trainer(
            create_world_model("mlp:ci"), TrainingConfig(device="abacus", output_dir=str(tmp_path))
        )


def test_checkpointing_computes_activations_twice(buffer: ReplayBuffer, tmp_path: Path) -> None:
    counts = []
    for is_on in (False, True):
        calls: list[int] = []
        model = create_world_model("mlp:ci", obs_shape=(3,), action_dim=2)
        model.members[0].encoder[0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        config = TrainingConfig(
            gradient_checkpointing=is_on,
            output_dir=str(tmp_path),
            device="cpu",
            total_steps=1,
            eval_batches=1,
            batch_size=2,
            sequence_length=5,
        )
        Trainer(model, config).train(buffer)
        counts.append(len(calls))
    assert counts[1] - counts[0] == 1


def test_a_resumed_run_remembers_its_evaluation_and_its_bad_updates(
    buffer: ReplayBuffer, tmp_path: Path
) -> None:
    trainer, _ = run(buffer, tmp_path)
    trainer.bad_steps = 3
    trainer.save_checkpoint(tmp_path / "c.pt")
    again = Trainer(create_world_model("mlp:ci", obs_shape=(3,), action_dim=2), trainer.config)
    again.load_checkpoint(tmp_path / "c.pt")
    assert again.state.metrics == trainer.state.metrics
    assert "eval/loss" in again.state.metrics
    assert again.bad_steps == 3


def test_a_checkpoint_written_between_loading_and_training_keeps_the_generators(
    buffer: ReplayBuffer, tmp_path: Path
) -> None:
    first, _ = run(buffer, tmp_path)
    first.save_checkpoint(tmp_path / "a.pt")
    middle = Trainer(create_world_model("mlp:ci", obs_shape=(3,), action_dim=2), first.config)
    middle.load_checkpoint(tmp_path / "a.pt")
    middle.model.train()
    torch.manual_seed(99)
    middle.save_checkpoint(tmp_path / "b.pt")
    middle.load_checkpoint(tmp_path / "b.pt")
    assert middle.rng is not None
    assert first.rng is not None
    assert torch.equal(middle.rng["cpu"], first.rng["cpu"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"total_step": 3}, "did you mean total_steps"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number > 0, got '1e-3'"),
        ({"weight_decay": None}, "weight_decay must be a number >= 0, got None"),
        ({"ema_decay": "x"}, "ema_decay"),
    ],
)
def test_mistakes_in_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        TrainingConfig(**settings)


def test_what_cannot_be_trained_is_refused_with_the_way_out(tmp_path: Path) -> None:
    config = TrainingConfig(output_dir=str(tmp_path), device="cpu")
    with pytest.raises(ConfigurationError, match="create_world_model"):
        Trainer("dreamerv3:ci", config)
    with pytest.raises(ConfigurationError, match=r"ReplayBuffer\.load"):
        Trainer(create_world_model("mlp:ci"), config).train("data.npz")
