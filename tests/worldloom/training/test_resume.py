"""A run that was interrupted, broke off or goes on with other settings does what its user thinks it
does.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from worldloom import create_world_model
from worldloom.algorithms.configs import MLPConfig
from worldloom.core.exceptions import CheckpointError, ConfigurationError, TrainingError
from worldloom.training import ReplayBuffer, Trainer, TrainingConfig, interrupts
from worldloom.training.callbacks import CheckpointCallback, EarlyStoppingCallback, LoggingCallback
from worldloom.training.data import create_random_buffer
from worldloom.training.tree_files import load_tree_file, save_tree_file


@pytest.fixture(scope="module")
def buffer() -> ReplayBuffer:
    return create_random_buffer(400, (3,), 2, num_episodes=20, episode_length=20, seed=0)


@pytest.fixture(autouse=True)
def _handlers_as_a_program_begins_with() -> Iterator[None]:
    """Whatever ran before in this process (Ray sets SIGTERM's), or ignores signals for it."""
    former = {number: signal.signal(number, kind) for number, kind in interrupts.DEFAULTS.items()}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def make(
    folder: Path, callbacks: Any = None, own: Any = None, scheduler: Any = None, **changes: Any
) -> Trainer:
    torch.manual_seed(0)
    model = create_world_model(
        "dreamerv3:ci", obs_shape=(3,), action_dim=2, deter_dim=16, hidden_dim=8
    )
    fields = {
        "total_steps": 6,
        "batch_size": 2,
        "sequence_length": 4,
        "eval_interval": 100,
        "save_interval": 2,
        "eval_batches": 1,
    }
    config = TrainingConfig(**(fields | {"output_dir": folder, "device": "cpu"} | changes))
    built = own(model.parameters()) if own else None
    return Trainer(model, config, callbacks, built, scheduler(built) if scheduler else None)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [value.detach().clone() for value in trainer.model.state_dict().values()]


def same(one: Trainer, other: Trainer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def at_call(number: int, act: Callable[[], Any]) -> Callable[..., None]:
    calls = [0]

    def hook(*_: Any) -> None:
        calls[0] += 1
        if calls[0] == number:
            act()

    return hook


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def strike(trainer: Trainer, where: str, act: Callable[[], Any]) -> None:
    """Let something happen in the third update: inside the loss, after the optimizer's step, or
    between two updates.
    """
    hook = at_call(3, act)
    if where == "loss":
        loss = trainer.model.compute_loss
        trainer.model.compute_loss = lambda batch: (loss(batch), hook())[0]
    elif where == "step":
        trainer.optimizer.register_step_post_hook(hook)
    else:
        trainer.add_callback(type("Between", (), {"on_step_end": lambda self, trainer: hook()})())


@pytest.mark.parametrize("where", ["loss", "step", "between"])
def test_ctrl_c_waits_for_the_whole_update_and_the_resumed_run_has_the_same_bits(
    where, buffer, tmp_path, caplog
):
    whole = make(tmp_path / "a")
    whole.train(buffer)
    first = make(tmp_path / "b")
    strike(first, where, ctrl_c)
    first.train(buffer)
    assert first.state.global_step == 3
    assert "stopping after the present update" in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    second = make(tmp_path / "c")
    second.train(buffer, resume_from=tmp_path / "b" / "checkpoint_final.pt")
    assert same(whole, second)


def test_a_second_ctrl_c_leaves_at_once_and_the_last_whole_checkpoint_stays(
    buffer, tmp_path, caplog
):
    trainer = make(tmp_path)
    strike(trainer, "step", lambda: (ctrl_c(), ctrl_c()))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(buffer)
    assert not trainer.is_whole
    assert "checkpoint_final.pt is not written" in caplog.text
    assert [path.name for path in tmp_path.glob("*.pt")] == ["checkpoint_2.pt"]
    again = make(tmp_path / "c")
    whole = make(tmp_path / "d")
    again.train(buffer, resume_from=tmp_path / "checkpoint_2.pt")
    whole.train(buffer)
    assert same(again, whole)


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_a_closed_terminal_save_and_then_end_the_process(
    asked, buffer, tmp_path, monkeypatch
):
    trainer = make(tmp_path)
    sent = []
    strike(trainer, "loss", lambda: os.kill(os.getpid(), asked))
    kill = os.kill

    def noted(pid: int, number: int) -> None:
        if signal.getsignal(number) is signal.SIG_DFL:
            sent.append(number)  # the second time: Python's own handler is back
        else:
            kill(pid, number)

    monkeypatch.setattr(interrupts.os, "kill", noted)
    trainer.train(buffer)
    assert sent == [asked]
    assert load_tree_file(tmp_path / "checkpoint_final.pt")[0]["step"] == 3


def test_handlers_of_the_program_are_left_alone(buffer, tmp_path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        trainer = make(tmp_path, total_steps=4)
        strike(trainer, "loss", lambda: os.kill(os.getpid(), signal.SIGTERM))
        trainer.train(buffer)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (seen, trainer.state.global_step) == ([1], 4)


@pytest.mark.parametrize(
    ("where", "names"),
    [("loss", {"checkpoint_2.pt", "checkpoint_final.pt"}), ("step", {"checkpoint_2.pt"})],
)
def test_an_update_that_fails_is_in_no_checkpoint(where, names, buffer, tmp_path):
    def fail() -> None:
        raise RuntimeError("out of memory")

    trainer = make(tmp_path)
    strike(trainer, where, fail)
    with pytest.raises(TrainingError, match="update 3 failed: out of memory"):
        trainer.train(buffer)
    assert {path.name for path in tmp_path.glob("*.pt")} == names
    whole = make(tmp_path / "w")
    whole.train(buffer)
    for name in names:
        again = make(tmp_path / "again" / name)
        again.train(buffer, resume_from=tmp_path / name)
        assert same(again, whole)


def trained(buffer: ReplayBuffer, folder: Path, **changes: Any) -> Path:
    make(folder, **changes).train(buffer, num_steps=2)
    return folder / "checkpoint_final.pt"


def test_settings_that_changed_are_applied_and_listed(buffer, tmp_path, caplog):
    path = trained(buffer, tmp_path / "a", learning_rate=1e-3, weight_decay=0.0)
    trainer = make(
        tmp_path / "b",
        learning_rate=1e-5,
        weight_decay=0.5,
        batch_size=3,
        model_overrides={"kl_free": 0.5},
        log_interval=1,
    )
    trainer.train(buffer, resume_from=path)
    assert [entry["learning_rate"] for entry in trainer.history] == [1e-5] * 4
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.5}
    for words in (
        "learning_rate 0.001 -> 1e-05",
        "weight_decay 0.0 -> 0.5",
        "batch_size 2 -> 3",
        "kl_free 1.0 -> 0.5",
    ):
        assert words in caplog.text
    caplog.clear()
    make(tmp_path / "c", learning_rate=1e-3).train(buffer, resume_from=path)
    assert "changed settings" not in caplog.text


def test_another_seed_draws_anew_and_the_same_goes_on(buffer, tmp_path):
    path = trained(buffer, tmp_path / "a")
    runs = [make(tmp_path / name, seed=seed) for name, seed in (("b", 42), ("c", 7), ("d", 7))]
    for trainer in runs:
        trainer.train(buffer, resume_from=path)
    assert not same(runs[0], runs[1])
    assert same(runs[1], runs[2])


@pytest.mark.parametrize("is_old", [False, True])
def test_another_optimizer_is_refused_in_a_sentence_and_nothing_is_changed(
    is_old, buffer, tmp_path
):
    path = trained(buffer, tmp_path / "a", optimizer="sgd")
    if is_old:
        tree, facts = load_tree_file(path)
        save_tree_file(
            path,
            {k: v for k, v in tree.items() if k not in ("optimizer_class", "group_settings")},
            facts,
        )
    trainer = make(tmp_path / "b", optimizer="adamw")
    before = weights(trainer)
    with pytest.raises(
        CheckpointError,
        match=r"optimizer: the checkpoint was made with .*AdamW; go on with the same one",
    ):
        trainer.load_checkpoint(path)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))


def test_checkpoints_of_earlier_versions_go_on_with_the_same_bits(buffer, tmp_path):
    whole = make(tmp_path / "a", callbacks=[EarlyStoppingCallback(patience=100)])
    whole.train(buffer)
    path = tmp_path / "a" / "checkpoint_2.pt"
    tree, facts = load_tree_file(path)
    old = {k: v for k, v in tree.items() if k not in ("optimizer_class", "group_settings")}
    old["callbacks"] = {key.partition(":")[0]: state for key, state in tree["callbacks"].items()}
    save_tree_file(tmp_path / "old.pt", old, facts)
    stop = EarlyStoppingCallback(patience=100)
    again = make(tmp_path / "b", callbacks=[stop])
    again.load_checkpoint(tmp_path / "old.pt")
    assert stop.best < float("inf")
    again.train(buffer)
    assert same(again, whole)


def test_what_training_did_to_an_own_optimizer_goes_on_and_what_the_user_changed_counts(
    buffer, tmp_path
):
    def sgd(rate: float) -> Any:
        return lambda parameters: torch.optim.SGD(parameters, lr=rate)

    def falling(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    first = make(tmp_path / "a", own=sgd(0.1), scheduler=falling)
    first.train(buffer, num_steps=2)
    second = make(tmp_path / "b", own=sgd(0.1), scheduler=falling)
    second.load_checkpoint(tmp_path / "a" / "checkpoint_final.pt")
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    third = make(tmp_path / "c", own=sgd(0.3))
    third.load_checkpoint(tmp_path / "a" / "checkpoint_final.pt")
    assert third.optimizer.param_groups[0]["lr"] == 0.3


def test_an_average_that_begins_on_a_resume_begins_with_the_loaded_weights(
    buffer, tmp_path, caplog
):
    path = trained(buffer, tmp_path / "a", learning_rate=1e-2)
    averaged = make(tmp_path / "b", ema_decay=0.999)
    averaged.load_checkpoint(path)
    assert averaged.average is not None
    loaded = averaged.model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in averaged.average.values.items())
    assert "begin now" in caplog.text
    averaged.train(buffer, num_steps=1)
    plain = make(tmp_path / "c")
    plain.load_checkpoint(tmp_path / "b" / "checkpoint_final.pt")
    assert "without averaged weights" in caplog.text


def test_callbacks_of_one_class_get_their_own_states_also_when_some_come_or_go(
    buffer, tmp_path, caplog
):
    def stops(*monitors: str) -> list[EarlyStoppingCallback]:
        return [EarlyStoppingCallback(monitor=monitor, patience=100) for monitor in monitors]

    first = stops("loss", "kl", "loss")
    first[2].min_delta = 9e9
    make(tmp_path / "a", callbacks=first).train(buffer, num_steps=3)
    again = stops("reward", "kl", "loss", "loss")
    make(tmp_path / "b", callbacks=again).load_checkpoint(tmp_path / "a" / "checkpoint_final.pt")
    assert [c.best for c in again[1:]] == [first[1].best, first[0].best, first[2].best]
    assert again[0].best == float("inf")
    assert "no state of EarlyStoppingCallback:min of reward#1" in caplog.text
    make(tmp_path / "c").load_checkpoint(tmp_path / "a" / "checkpoint_final.pt")
    assert "has the state of EarlyStoppingCallback:min of kl#1" in caplog.text


def test_fewer_steps_than_are_done_are_refused(buffer, tmp_path):
    path = trained(buffer, tmp_path / "a")
    with pytest.raises(
        ConfigurationError, match=r"total_steps must be >= 2, .* got 1; raise it, or pass num_steps"
    ):
        make(tmp_path / "b", total_steps=1).train(buffer, resume_from=path)
    done = make(tmp_path / "c", total_steps=2)
    done.train(buffer, resume_from=path)
    assert done.state.global_step == 2
    for wrong in (-1, 1.5, True):
        with pytest.raises(ConfigurationError, match="num_steps must be an integer >= 0"):
            done.train(buffer, num_steps=wrong)


def loader(buffer: ReplayBuffer, **options: Any) -> DataLoader:
    torch.manual_seed(3)
    batch = buffer.sample(7, 4, rng=np.random.default_rng(0))
    windows = [{name: value[i] for name, value in batch.items()} for i in range(7)]
    return DataLoader(windows, batch_size=2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["list", "loader", "shuffled", "generator", "persistent"])
def test_lists_and_loaders_go_on_where_they_were(kind, buffer, tmp_path):
    options = {
        "shuffled": {"shuffle": True},
        "generator": {"shuffle": True, "generator": torch.Generator()},
        "persistent": {"shuffle": True, "num_workers": 1, "persistent_workers": True},
    }

    def data() -> Any:
        made = loader(buffer, **options.get(kind, {}))
        return list(made) if kind == "list" else made

    whole, first, second = (
        make(tmp_path / name, total_steps=7, eval_interval=2, save_interval=5) for name in "abc"
    )
    whole.train(data())
    first.train(data(), num_steps=5)
    second.train(data(), resume_from=tmp_path / "b" / "checkpoint_5.pt")
    assert same(whole, second)


class Stream(IterableDataset):
    """Windows without a length."""

    def __init__(self, windows: list[Any]) -> None:
        self.windows = windows

    def __iter__(self) -> Any:
        return iter(self.windows)


def test_a_loader_of_a_stream_has_no_length_and_goes_on_too(buffer, tmp_path):
    def data() -> Any:
        return DataLoader(Stream(loader(buffer).dataset), batch_size=2)

    whole, first, second = (
        make(tmp_path / name, total_steps=7, eval_interval=2, save_interval=5) for name in "abc"
    )
    whole.train(data())
    first.train(data(), num_steps=5)
    second.train(data(), resume_from=tmp_path / "b" / "checkpoint_5.pt")
    assert same(whole, second)


def test_a_checkpoint_knows_the_best_score_of_its_own_step(buffer, tmp_path):
    saves = CheckpointCallback(save_interval=2)
    make(tmp_path / "a", callbacks=[saves], eval_interval=2).train(buffer, num_steps=2)
    assert saves.best < float("inf")
    again = CheckpointCallback(save_interval=2)
    make(tmp_path / "b", callbacks=[again]).load_checkpoint(tmp_path / "a" / "checkpoint_2.pt")
    assert again.best == saves.best


def test_a_numbered_checkpoint_holds_what_callbacks_know_of_its_own_step(buffer, tmp_path):
    stop = EarlyStoppingCallback(monitor="learning_rate", mode="max", patience=100, min_delta=0)
    make(tmp_path / "a", callbacks=[stop], warmup_steps=4).train(buffer, num_steps=2)
    again = EarlyStoppingCallback(monitor="learning_rate", mode="max", patience=100, min_delta=0)
    make(tmp_path / "b", callbacks=[again], warmup_steps=4).load_checkpoint(
        tmp_path / "a" / "checkpoint_2.pt"
    )
    assert again.state_dict() == stop.state_dict()
    assert again.best_step == 2


def test_checkpoints_of_earlier_runs_make_room_first_and_files_of_the_user_stay(buffer, tmp_path):
    for number in (100, 200):
        (tmp_path / f"checkpoint_{number}.pt").write_bytes(b"of an earlier run")
        os.utime(tmp_path / f"checkpoint_{number}.pt", (9e9, 9e9))  # whatever a clock says
    (tmp_path / "checkpoint_3_mine.pt").write_bytes(b"mine")
    keeps = CheckpointCallback(save_interval=2, max_checkpoints=2)
    make(tmp_path, callbacks=[keeps]).train(buffer)
    assert {path.name for path in tmp_path.glob("checkpoint_[0-9]*")} == {
        "checkpoint_3_mine.pt",
        "checkpoint_4.pt",
        "checkpoint_6.pt",
    }


def test_folders_and_schedulers_that_cannot_work_are_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="output_dir must be a folder that can be made"):
        make(tmp_path / "file" / "below")
    with pytest.raises(ConfigurationError, match="scheduler must step without a metric"):
        make(
            tmp_path,
            own=lambda p: torch.optim.SGD(p, lr=0.1),
            scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau,
        )


def test_what_is_no_part_of_a_trainer_is_refused(tmp_path):
    model = create_world_model("mlp:ci")
    config = TrainingConfig(output_dir=tmp_path)
    foreign = torch.optim.SGD(create_world_model("mlp:ci").parameters(), lr=0.1)
    for arguments, words in (
        ((model, {"total_steps": 3}), "config must be a TrainingConfig, got dict"),
        (
            (model, config, EarlyStoppingCallback()),
            r"callbacks must be a list of callbacks, got EarlyStoppingCallback; write \[it\]",
        ),
        ((model, config, None, "adam"), "optimizer must be a torch.optim.Optimizer, got 'adam'"),
        ((type(model), config), "model must be a world model, got <class"),
        ((model, config, [None]), "callbacks must have one of the hooks .*, got None"),
        ((model, config, [EarlyStoppingCallback]), "callbacks must have one .* pass an instance"),
        ((model, config, None, foreign), "optimizer must hold parameters of the model, got a SGD"),
        (
            (model, config, None, None, torch.optim.lr_scheduler.StepLR(foreign, 1)),
            "scheduler must be of the optimizer that is used, got one of another; pass its",
        ),
    ):
        with pytest.raises(ConfigurationError, match=words):
            Trainer(*arguments)
    for kind in (TrainingConfig, MLPConfig):
        with pytest.raises(
            ConfigurationError, match=f"the settings of a {kind.__name__} must be a dict, got list"
        ):
            kind.from_dict([1])


def test_what_is_no_checkpoint_says_what_it_is(tmp_path):
    trainer = make(tmp_path)
    trainer.model.save_pretrained(tmp_path / "m")
    with pytest.raises(CheckpointError, match="is a folder; name a file in it"):
        trainer.load_checkpoint(tmp_path / "m")
    with pytest.raises(
        CheckpointError,
        match=r"is no checkpoint; weights of a saved model are loaded by create_world_model",
    ):
        trainer.load_checkpoint(tmp_path / "m" / "model.safetensors")
    trainer.save_checkpoint(tmp_path / "c.pt")
    other = Trainer(create_world_model("mlp:ci"), TrainingConfig(output_dir=tmp_path))
    with pytest.raises(
        CheckpointError,
        match=r"c\.pt: tensor .*create the model as it was when the checkpoint was made",
    ):
        other.load_checkpoint(tmp_path / "c.pt")


def test_held_out_data_of_another_kind_is_refused(buffer, tmp_path):
    batch = buffer.sample(2, 4)
    trainer = make(tmp_path)
    trainer.train([batch], num_steps=1, eval_data=batch)
    with pytest.raises(
        ConfigurationError, match=r"eval_data must be a ReplayBuffer, as data is, got list"
    ):
        trainer.train(buffer, eval_data=[batch])
    with pytest.raises(
        ConfigurationError,
        match=r"eval_data must be a list or loader of batches, as data is, got ReplayBuffer",
    ):
        trainer.train([batch], eval_data=buffer)


def test_the_metrics_of_a_diverged_run_are_json_and_a_half_line_is_cut(tmp_path):
    batch = {"obs": torch.full((2, 3, 3), 1e38), "actions": torch.zeros(2, 3, 2)}
    batch |= {"rewards": torch.full((2, 3), 1e38), "continues": torch.ones(2, 3)}
    model = create_world_model("mlp:ci", obs_shape=(3,), action_dim=2)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    config = TrainingConfig(total_steps=20, output_dir=tmp_path, device="cpu")
    with pytest.raises(TrainingError, match="not finite"):
        Trainer(model, config, [LoggingCallback(1, log_to_console=False)]).train(batch)

    def strict(word: str) -> None:
        raise ValueError(word)

    lines = [
        json.loads(line, parse_constant=strict)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[0] == {"step": 1}
    assert [line["step"] for line in lines[1:]] == list(range(1, 10))
    assert all(line["grad_norm"] is None for line in lines[1:])


@pytest.mark.parametrize(
    "wrong",
    [
        {"patience": float("nan")},
        {"patience": True},
        {"min_delta": float("nan")},
        {"min_delta": -1.0},
        {"monitor": None},
    ],
)
def test_settings_of_early_stopping_are_checked(wrong):
    with pytest.raises(ConfigurationError, match=f"{next(iter(wrong))} must be"):
        EarlyStoppingCallback(**wrong)
