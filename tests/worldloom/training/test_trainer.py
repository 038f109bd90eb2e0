import json
import logging
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from worldloom import create_world_model
from worldloom.core.exceptions import (
    BufferError,
    CheckpointError,
    ConfigurationError,
    TrainingError,
)
from worldloom.training import (
    LoggingCallback,
    ReplayBuffer,
    Trainer,
    TrainingConfig,
    TrajectoryDataset,
    train,
)
from worldloom.training.callbacks import (
    CallbackList,
    CheckpointCallback,
    EarlyStoppingCallback,
    ProgressCallback,
)
from worldloom.training.data import create_random_buffer
from worldloom.training.schedule import rate_factor


@pytest.fixture(scope="module")
def buffer() -> ReplayBuffer:
    return create_random_buffer(600, (3,), 2, num_episodes=30, episode_length=20, seed=0)


def make(
    tmp_path: Path, name: str = "mlp:ci", callbacks: Any = None, seed: int = 0, **changes: Any
) -> Trainer:
    torch.manual_seed(seed)
    model = create_world_model(name, obs_shape=(3,), action_dim=2)
    fields = {
        "total_steps": 4,
        "batch_size": 4,
        "sequence_length": 5,
        "eval_interval": 2,
        "save_interval": 2,
        "eval_batches": 1,
    }
    config = TrainingConfig(**(fields | {"output_dir": str(tmp_path), "device": "cpu"} | changes))
    return Trainer(model, config, callbacks)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["mlp:ci", "tdmpc2:ci", "dreamerv3:ci"])
def test_a_resumed_run_ends_with_the_same_bits(
    name: str, buffer: ReplayBuffer, tmp_path: Path
) -> None:
    settings = {"scheduler": "cosine", "warmup_steps": 2, "ema_decay": 0.9}
    whole = make(tmp_path / "a", name, **settings)
    whole.train(buffer)
    first = make(tmp_path / "b", name, **settings)
    first.train(buffer, num_steps=2)
    second = make(tmp_path / "b", name, seed=9, num_workers=2, **settings)
    second.train(buffer, resume_from=tmp_path / "b" / "checkpoint_2.pt")
    assert same(weights(whole), weights(second))
    assert whole.state.metrics == second.state.metrics
    third = make(tmp_path / "c", name, seed=9, **settings)
    third.load_checkpoint(tmp_path / "a" / "checkpoint_final.pt")
    assert third.state.global_step == 4


def test_threads_and_the_caller_s_generator_change_nothing_but_the_seed_does(
    buffer: ReplayBuffer, tmp_path: Path
) -> None:
    results = []
    for number, changes in enumerate([{}, {"num_workers": 2, "prefetch_factor": 1}, {"seed": 1}]):
        trainer = make(tmp_path, **changes)
        torch.manual_seed(100 + number)
        before = torch.get_rng_state()
        trainer.train(buffer)
        assert torch.equal(before, torch.get_rng_state())
        results.append(weights(trainer))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"optimizer": "sgd"},
            {"scheduler": "linear"},
            {"warmup_steps": 3},
            {"ema_decay": 0.5},
            {"weight_decay": 0.5},
        ),
        *(
            {"mixed_precision": True},
            {"grad_clip": 0.01},
            {"model_overrides": {"reward_scale": 9.0}},
            {"learning_rate": 1e-2},
        ),
    ],
)
def test_every_setting_takes_effect(
    change: dict[str, Any], buffer: ReplayBuffer, tmp_path: Path
) -> None:
    plain = make(tmp_path, optimizer="adamw")
    changed = make(tmp_path, **change)
    if "grad_clip" in change:
        plain = make(tmp_path, optimizer="sgd")
        changed = make(tmp_path, optimizer="sgd", **change)
    for trainer in (plain, changed):
        trainer.train(buffer)
    assert not same(weights(plain), weights(changed))


def test_gradient_checkpointing_gives_the_same_training(
    buffer: ReplayBuffer, tmp_path: Path
) -> None:
    plain = make(tmp_path)
    changed = make(tmp_path, gradient_checkpointing=True)
    for trainer in (plain, changed):
        trainer.train(buffer)
    assert all(
        torch.allclose(a, b, atol=1e-6)
        for a, b in zip(weights(plain), weights(changed), strict=True)
    )


@pytest.mark.parametrize("name", ["tdmpc2:ci", "dreamerv3:ci"])
def test_mixed_precision_trains_every_model(
    name: str, buffer: ReplayBuffer, tmp_path: Path
) -> None:
    trainer = make(tmp_path, name, mixed_precision=True)
    before = weights(trainer)
    trainer.train(buffer, num_steps=2)
    assert not same(before, weights(trainer))
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_the_model_s_own_settings_count_where_the_config_says_nothing(tmp_path: Path) -> None:
    assert make(tmp_path).learning_rate == 1e-3
    assert make(tmp_path, learning_rate=2e-3).learning_rate == 2e-3
    with pytest.raises(ConfigurationError, match="built into the networks"):
        make(tmp_path, model_overrides={"hidden_dim": 3})


def test_the_best_checkpoint_is_the_one_with_the_lowest_held_out_loss(
    buffer: ReplayBuffer, tmp_path: Path
) -> None:
    trainer = make(tmp_path, total_steps=6)
    trainer.train(buffer)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["eval/loss"] for line in lines if "eval/loss" in line}
    assert sorted(scores) == [2, 4, 6]
    best = make(tmp_path, seed=3)
    best.load_checkpoint(tmp_path / "checkpoint_best.pt")
    assert best.state.global_step == min(scores, key=scores.__getitem__)
    assert trainer.state.best_loss == min(scores.values())


def test_evaluation_repeats_and_leaves_training_alone(buffer: ReplayBuffer, tmp_path: Path) -> None:
    trainer = make(tmp_path, "dreamerv3:ci")
    alone = make(tmp_path / "alone", "dreamerv3:ci")
    assert trainer.evaluate(buffer, 2) == trainer.evaluate(buffer, 2)
    assert trainer.model.training
    for each in (trainer, alone):
        each.train(buffer, num_steps=2)
    for mine, theirs in zip(trainer.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(ConfigurationError, match="num_batches"):
        trainer.evaluate(buffer, 0)


def test_training_reads_datasets_lists_and_single_batches(
    buffer: ReplayBuffer, tmp_path: Path
) -> None:
    batch = buffer.sample(4, 5)
    for data in (TrajectoryDataset(buffer, 5, 8), [batch, batch], batch):
        trainer = make(tmp_path)
        before = [value.clone() for value in trainer.model.parameters()]
        assert trainer.train(data, num_steps=2) is trainer.model
        assert trainer.state.global_step == 2
        assert any(
            not torch.equal(old, new)
            for old, new in zip(before, trainer.model.parameters(), strict=True)
        )
    with pytest.raises(ConfigurationError, match="ReplayBuffer"):
        make(tmp_path).train(3)
    with pytest.raises(BufferError, match="seq_len is 50"):
        make(tmp_path, sequence_length=50).train(buffer)


class Recorder:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.losses: dict[str, float] = {}

    def on_train_begin(self, trainer: Trainer) -> None:
        self.events.append("train+")

    def on_epoch_begin(self, trainer: Trainer) -> None:
        self.events.append("epoch+")

    def on_step_begin(self, trainer: Trainer) -> None:
        self.events.append("step+")

    def on_step_end(self, step: int, losses: dict[str, float]) -> None:
        self.events.append(f"step{step}")
        self.losses = losses

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.events.append("epoch-")

    def on_train_end(self, trainer: Trainer) -> None:
        self.events.append("train-")


def test_every_hook_fires_in_order_and_may_take_losses(
    buffer: ReplayBuffer, tmp_path: Path
) -> None:
    recorder = Recorder()
    make(tmp_path, callbacks=[recorder]).train(buffer, num_steps=3)
    epoch = ["epoch+", "step+", "step1", "step+", "step2", "epoch-"]
    assert recorder.events == ["train+", *epoch, "epoch+", "step+", "step3", "epoch-", "train-"]
    assert {"loss", "grad_norm"} <= set(recorder.losses)
    with pytest.raises(ConfigurationError, match="no hook"):
        CallbackList().call("on_lunch", None)


def test_a_callback_replaces_the_default_of_its_class(buffer: ReplayBuffer, tmp_path: Path) -> None:
    mine = CheckpointCallback(save_dir=str(tmp_path / "own"), save_every=1, keep_last=2)
    trainer = make(tmp_path, callbacks=[mine])
    assert [type(c) for c in trainer.callbacks].count(CheckpointCallback) == 1
    log = LoggingCallback(1, log_dir=str(tmp_path / "logs"), log_to_console=False)
    trainer.add_callback(log)
    assert [c for c in trainer.callbacks if isinstance(c, LoggingCallback)] == [log]
    trainer.train(buffer)
    assert {p.name for p in (tmp_path / "own").glob("checkpoint_[0-9]*")} == {
        "checkpoint_3.pt",
        "checkpoint_4.pt",
    }
    assert (tmp_path / "logs" / "metrics.jsonl").exists()


def test_early_stopping_and_the_progress_bar(buffer: ReplayBuffer, tmp_path: Path) -> None:
    import io

    stream = io.StringIO()
    stop = EarlyStoppingCallback(patience=2, min_delta=1e9, monitor="grad_norm", mode="max")
    trainer = make(
        tmp_path, callbacks=[stop, ProgressCallback("Go", stream=stream)], total_steps=50
    )
    trainer.train(buffer)
    assert trainer.state.global_step == 3
    assert "Go [" in stream.getvalue()
    with pytest.raises(ConfigurationError, match=r"mode must be one of min, max, got .sideways"):
        EarlyStoppingCallback(mode="sideways")  # type: ignore[arg-type]


def test_console_output_needs_no_logging_setup(
    buffer: ReplayBuffer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.CRITICAL):
        make(tmp_path, log_interval=2).train(buffer)
    assert "step 2: loss" in capsys.readouterr().err


def test_ten_bad_updates_stop_a_run_and_change_nothing(tmp_path: Path) -> None:
    batch = {"obs": torch.full((2, 3, 3), 1e30), "actions": torch.zeros(2, 3, 2)}
    batch |= {"rewards": torch.zeros(2, 3), "continues": torch.ones(2, 3)}
    trainer = make(tmp_path, total_steps=99)
    before = weights(trainer)
    with pytest.raises(TrainingError, match="10 updates in a row were not finite"):
        trainer.train(batch)
    assert same(before, weights(trainer))


class Interrupter:
    def on_step_end(self, trainer: Trainer) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_ends_cleanly_with_a_checkpoint(buffer: ReplayBuffer, tmp_path: Path) -> None:
    trainer = make(tmp_path, callbacks=[Interrupter()])
    trainer.train(buffer)
    assert trainer.state.global_step == 1
    assert (tmp_path / "checkpoint_final.pt").exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign", "other model"])
def test_damaged_or_foreign_checkpoints_are_refused(
    damage: str, buffer: ReplayBuffer, tmp_path: Path
) -> None:
    trainer = make(tmp_path)
    path = tmp_path / "checkpoint.pt"
    trainer.save_checkpoint(path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-50])
    elif damage == "flip":
        data[-50] ^= 1
        path.write_bytes(data)
    elif damage == "foreign":
        torch.save({"x": torch.zeros(1)}, path)
    target = make(tmp_path, "tdmpc2:ci") if damage == "other model" else trainer
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        target.load_checkpoint(path)


def test_step_sizes_follow_their_schedule() -> None:
    assert [rate_factor(t, total=10, warmup=4, schedule="none") for t in range(5)] == [
        0.25,
        0.5,
        0.75,
        1.0,
        1.0,
    ]
    assert [rate_factor(t, total=10, warmup=0, schedule="linear") for t in (0, 5, 10)] == [
        1.0,
        0.5,
        0.0,
    ]
    assert rate_factor(5, total=10, warmup=0, schedule="cosine") == pytest.approx(0.5)


@pytest.mark.parametrize(
    "field",
    [
        *(
            {"total_steps": 0},
            {"batch_size": 0},
            {"learning_rate": 0},
            {"optimizer": "lion"},
            {"scheduler": "step"},
        ),
        *(
            {"ema_decay": 1.0},
            {"warmup_steps": -1},
            {"eval_episodes_every": 1},
            {"sequence_length": 1.5},
        ),
    ],
)
def test_wrong_settings_are_named(field: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(field))):
        TrainingConfig(**field)


def test_settings_survive_their_file_and_near_misses_are_offered(tmp_path: Path) -> None:
    config = TrainingConfig(total_steps=5, model_overrides={"kl_free": 0.5})
    config.save(tmp_path / "c.json")
    assert TrainingConfig.load(tmp_path / "c.json") == config
    assert config.with_updates(seed=1).seed == 1
    assert TrainingConfig(device="cpu").resolve_device() == "cpu"
    with pytest.raises(ConfigurationError, match="did you mean batch_size"):
        TrainingConfig.from_dict({"batchsize": 3})
    with pytest.raises(CheckpointError, match="not a readable"):
        TrainingConfig.load(tmp_path / "nothing.json")


def test_train_is_one_line(buffer: ReplayBuffer, tmp_path: Path) -> None:
    model = create_world_model("mlp:ci", obs_shape=(3,), action_dim=2)
    options = {
        "total_steps": 2,
        "batch_size": 2,
        "sequence_length": 4,
        "output_dir": tmp_path,
        "log_interval": 1,
    }
    assert train(model, buffer, **options) is model  # type: ignore[arg-type]


@pytest.mark.parametrize("event", ["on_train_begin", "on_train_end"])
def test_a_callback_that_raises_costs_neither_the_end_nor_the_files_of_the_others(
    event: str, buffer: ReplayBuffer, tmp_path: Path
) -> None:
    class Raising:
        pass

    def hook(trainer: Trainer) -> None:
        raise ValueError("mine")

    callback = Raising()
    setattr(callback, event, hook)
    logs = LoggingCallback()
    trainer = make(tmp_path, callbacks=[callback, logs])
    with pytest.raises(ValueError, match="mine"):
        trainer.train(buffer)
    assert (tmp_path / "checkpoint_final.pt").exists()
    open_files = [file.path for file in psutil.Process().open_files()]
    assert not [path for path in open_files if path.startswith(str(tmp_path))]
    assert not trainer.is_running
