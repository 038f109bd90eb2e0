"""Curves of runs: seeds are combined honestly, and the picture shows them."""

import json

import numpy as np
import pytest

from worldloom_dist import plot
from worldloom_dist.plot import Curve, combine, iqm, read_run


def make_run(folder, seed=1, agent="tdmpc2:ci"):
    folder.mkdir()
    run = {"agent": agent, "env": {"env": "toy:point"}, "seed": seed}
    (folder / "config.json").write_text(json.dumps({"run": run}))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in (0, 100, 200, 300):
            numbers = {
                "episode_return_mean{split=train}": step * seed,
                "loss{name=total}": 1.0 / seed,
                "env_steps_per_s": 5.0,
            }
            file.write(
                json.dumps({"kind": "train", "env_steps": step, "updates_per_s": 2.0, **numbers})
                + "\n"
            )
        file.write(json.dumps({"kind": "eval", "env_steps": 150, "return_mean": 70.0}) + "\n")
        file.write('{"kind": "train", "env_st')
    return folder


def test_the_interquartile_mean_is_the_mean_of_the_middle_half():
    assert iqm(np.array([0.0, 1.0, 2.0, 1000.0])) == 1.5
    assert iqm(np.array([3.0, 1.0])) == 2.0
    # the middle half of five is 0.75 + 1 + 0.75 values
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    assert iqm(values) == pytest.approx((0.75 * 2 + 3 + 0.75 * 4) / 2.5)
    many = np.random.default_rng(0).normal(size=(64, 3))
    assert np.allclose(iqm(many), np.sort(many, axis=0)[16:48].mean(0)), (
        "as scipy.stats.trim_mean(x, 0.25)"
    )


def test_seeds_are_combined_over_the_steps_that_all_have_reached():
    short = Curve(np.array([0.0, 100.0]), np.array([0.0, 10.0]))
    long = Curve(np.array([50.0, 100.0, 400.0]), np.array([15.0, 20.0, 99.0]))
    both = combine([short, long])
    assert both.steps.tolist() == [50.0, 100.0]
    assert both.values.tolist() == [10.0, 15.0]
    assert both.low[0] < both.values[0] < both.high[0]
    assert combine([short]) is short


def test_a_run_gives_its_curves_and_a_line_that_is_cut_is_left_out(tmp_path):
    run = read_run(make_run(tmp_path / "a", seed=2))
    assert run.experiment == "tdmpc2:ci on toy:point"
    assert run.curves["train"].values.tolist() == [0, 200, 400, 600]
    assert run.curves["eval"].steps.tolist() == [150]
    assert set(run.curves) == {"train", "eval", "loss{name=total}", "env steps/s", "updates/s"}


def test_the_picture_of_several_seeds_and_experiments_is_written(tmp_path, capsys):
    folders = [make_run(tmp_path / str(seed), seed) for seed in (1, 2, 3)] + [
        make_run(tmp_path / "d", 1, "dreamerv3:ci")
    ]
    assert plot.main([*map(str, folders), "-o", str(tmp_path / "all.png")]) == 0
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert plot.main([str(folders[0])]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folders[0] / "plot.png")


def test_what_cannot_be_drawn_is_one_sentence(tmp_path, capsys):
    folder = make_run(tmp_path / "a")
    assert plot.main([str(tmp_path / "nothing")]) == 2
    assert plot.main([str(folder), "-o", str(tmp_path / "x" / "y.png")]) == 2
    assert plot.main([str(folder), "-o", str(tmp_path / "y.xyz")]) == 2
    (folder / "metrics.jsonl").unlink()
    assert plot.main([str(folder)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [
        next(
            text for text in ("holds no run", "cannot be written", "no metrics yet") if text in line
        )
        for line in errors
    ] == [
        "holds no run",
        "cannot be written",
        "cannot be written",
        "no metrics yet",
    ]


def test_a_run_without_an_env_is_drawn_over_its_updates(tmp_path):
    folder = make_run(tmp_path / "a")
    run = {"agent": "tdmpc2:ci", "env": {"env": "none"}, "replay": {"load": "data.npz"}}
    (folder / "config.json").write_text(json.dumps({"run": run}))
    with (folder / "metrics.jsonl").open("w") as file:
        for updates in (10, 20, 30):
            record = {"env_steps": 0, "train_steps": updates, "loss{name=total}": 1.0 / updates}
            file.write(json.dumps({"kind": "train", **record}) + "\n")
    found = read_run(folder)
    assert (found.axis, found.experiment) == ("updates", "tdmpc2:ci on data.npz, offline")
    assert found.curves["loss{name=total}"].steps.tolist() == [10.0, 20.0, 30.0]
    other = read_run(make_run(tmp_path / "b"))
    assert other.axis == "env steps"
    plot.plot_runs([found, other], tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 10_000
