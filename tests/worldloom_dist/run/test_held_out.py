"""Losses on data that is never trained on."""

import json

import numpy as np
import pytest

from tests.worldloom_dist.local_runs import assert_equal_trees, newest_state, start
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.replay.__main__ import main as data
from worldloom_dist.run.cli import parse
from worldloom_dist.run.line import progress_line

OFFLINE = ["--env", "none", "--train-steps", "12", "--learner.held-out-every", "5"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of the same env, and one whose episodes are too short for a window."""
    folder = tmp_path_factory.mktemp("data")
    for seed in (1, 2):
        run = folder / f"run{seed}"
        words = [*TINY["tdmpc2:ci"], "--env-steps", "60", "--seed", str(seed)]
        assert start(run, *words).run() == "completed"
        assert data(["export", str(run), str(folder / f"{seed}.npz")]) == 0
    draw = np.random.default_rng(0)
    short = {
        "obs": draw.normal(size=(4, 4)).astype(np.float32),
        "actions": draw.uniform(-1, 1, size=(4, 2)).astype(np.float32),
        "rewards": np.zeros(4, np.float32),
        "dones": np.array([False, True, False, True]),
    }
    np.savez(folder / "short.npz", **short)
    return folder


def losses_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    found = {key: value for key, value in last.items() if key.startswith("loss{")}
    held = {key for key in found if "held_out/" in key}
    return {key: found[key] for key in held}, {key: found[key] for key in found.keys() - held}


@pytest.mark.parametrize("agent", list(TINY))
def test_held_out_losses_are_measured_and_training_stays_as_it_is(files, tmp_path, agent):
    words = [*TINY[agent], *OFFLINE, "--replay.load", str(files / "1.npz")]
    assert start(tmp_path / "without", *words).run() == "completed"
    run = start(tmp_path / "with", *words, "--replay.held-out", str(files / "2.npz"))
    assert run.run() == "completed"
    assert_equal_trees(
        newest_state(tmp_path / "without")["learner"], newest_state(tmp_path / "with")["learner"]
    )
    held, own = losses_of(tmp_path / "with")
    assert {key.replace("held_out/", "") for key in held} == own.keys()
    assert all(np.isfinite(value) for value in held.values())
    assert any(held[key.replace("=", "=held_out/")] != own[key] for key in own)
    assert not losses_of(tmp_path / "without")[0]
    text = progress_line(run.report.view(), 1)
    assert "losses total " in text or "held_out" in text


def test_the_same_windows_are_measured_every_time_and_no_other(files, tmp_path):
    words = [*TINY["tdmpc2:ci"], *OFFLINE, "--replay.load", str(files / "1.npz")]
    run = start(tmp_path / "run", *words, "--replay.held-out", str(files / "2.npz"))
    learner = run.runtime.learner
    first, again = (learner.held_out.draw() for _ in range(2))
    assert all(np.array_equal(first.columns[key], again.columns[key]) for key in first.columns)
    with np.load(files / "2.npz") as file:
        held = {row.tobytes() for row in np.asarray(file["obs"], np.float32)}
    drawn = first.columns["obs"].reshape(-1, first.columns["obs"].shape[-1])
    rest = [row for row in drawn if row.astype(np.float32).tobytes() not in held]
    assert len(rest) < len(drawn) / 4, "only last observations stand elsewhere in the file"
    assert [learner.held_out.is_due(n) for n in (1, 2, 5, 7, 10)] == [
        True,
        False,
        True,
        False,
        True,
    ]
    run.runtime.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--replay.held-out", "missing.npz"], r"replay\.held_out: .*missing\.npz"),
        (["--replay.held-out", "{files}/short.npz"], "fills a window"),
    ],
)
def test_what_cannot_be_held_out_is_one_sentence(files, tmp_path, words, message):
    own = [*TINY["dreamerv3:ci"], *OFFLINE, "--replay.load", str(files / "1.npz")]
    words = [word.format(files=files) for word in words]
    with pytest.raises(ConfigurationError, match=message):
        start(tmp_path / "run", *own, *words)


def test_several_learners_hold_nothing_out():
    with pytest.raises(ConfigurationError, match="drop one of the two"):
        parse("--env none --replay.load a.npz --replay.held-out b.npz --learners 2".split())
