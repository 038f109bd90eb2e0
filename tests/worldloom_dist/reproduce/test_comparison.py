"""Returns are compared at equal env steps, measured as the published ones were."""

from dataclasses import replace

import numpy as np
import pytest

from worldloom_dist.reproduce import TARGETS
from worldloom_dist.reproduce.comparison import compared, comparison_table


def episode(env_steps, value, *, by="worldloom", seed=1, ended="last"):
    kinds = {"kind": "episode", "by": by, "seed": seed, "ended": ended}
    return {**kinds, "env_steps": env_steps, "return": value}


def evaluation(env_steps, returns, *, by="worldloom", seed=1):
    return {"kind": "eval", "by": by, "seed": seed, "env_steps": env_steps, "returns": returns}


def at(rows, env_steps, measured):
    (row,) = [r for r in rows if (r["env_steps"], r["measured"]) == (env_steps, measured)]
    return row


def test_training_episodes_near_a_published_point_count():
    target = TARGETS["dreamerv3/cartpole-swingup"]
    records = [
        episode(14_000, 500.0),  # too early for 30,000
        episode(16_000, 100.0),
        episode(45_000, 200.0),
        episode(46_000, 900.0),  # too late
        episode(30_000, 7_000.0, ended="cut"),
        episode(31_000, 300.0, seed=2),
        episode(50_000, 1.0),
        episode(50_000, 1.0, seed=2),
    ]
    row = at(compared(target, records), 30_000, "training")
    assert row["published"] == pytest.approx(249.3)
    assert row["published_std"] == pytest.approx(31.3)
    assert row["window_env_steps"] == [15_000, 45_000]
    assert row["worldloom"] == {"mean": 225.0, "std": 75.0, "seeds": {"1": 150.0, "2": 300.0}}
    assert row["authors"] is None


@pytest.mark.parametrize(
    ("name", "env_steps", "low", "high"),
    [
        ("dreamerv3/pong", 400_000, 360_000, 400_000),
        ("dreamerv3/pong", 200_000, 190_000, 210_000),
        ("dreamerv3/walker-walk", 490_000, 465_000, 495_000),
        ("dreamerv3/walker-stand-pixels", 500_000, 475_000, 525_000),
        ("dreamerv3/walker-stand-pixels", 1_000_000, 950_000, 1_000_000),
    ],
)
def test_the_window_is_that_of_the_published_point(name, env_steps, low, high):
    inside = [episode(low, 100.0), episode(high, 300.0)]
    outside = [episode(low - 1, 9_000.0), episode(high + 1, 9_000.0)]
    rows = compared(TARGETS[name], [*inside, *outside, episode(2_000_000, 9_000.0)])
    row = at(rows, env_steps, "training")
    assert row["window_env_steps"] == [low, high]
    assert row["worldloom"]["mean"] == 200.0


@pytest.mark.parametrize(
    "name",
    [name for name in TARGETS if TARGETS[name].measured == "training" and TARGETS[name].hours],
)
def test_who_learns_as_published_has_the_published_number_at_the_last_point(name):
    target = TARGETS[name]
    curve = target.curve().curve
    records = [
        episode(env_steps, float(np.interp(env_steps, curve.steps, curve.values)))
        for env_steps in range(1_000, target.env_steps + 1, 1_000)
    ]
    last = [row for row in compared(target, records) if row["published"]][-1]
    assert last["env_steps"] == curve.steps[target.last_compared()]
    assert last["worldloom"]["mean"] == pytest.approx(last["published"], rel=0.05)


def test_a_run_that_ends_within_a_window_has_no_number_there():
    target = TARGETS["dreamerv3/cartpole-swingup"]
    far = [episode(30_000, 1.0), episode(55_000, 2.0), episode(65_000, 3.0)]
    short = [episode(30_000, 1.0, seed=2), episode(55_000, 9.0, seed=2)]
    assert at(compared(target, far + short), 50_000, "training")["worldloom"]["seeds"] == {"1": 2.5}
    rows = compared(target, short)
    assert [r["env_steps"] for r in rows if r["published"]] == [20_000, 30_000, 40_000]


def test_an_evaluation_counts_for_env_steps_near_its_own():
    target = TARGETS["tdmpc2/cup-catch"]
    records = [
        evaluation(90_000, [0.0]),
        evaluation(100_058, [900.0, 1000.0]),
        evaluation(100_000, [980.0], by="authors"),
        episode(100_000, 3.0),
    ]
    row = at(compared(target, records), 100_000, "evaluation")
    assert row["published"] == pytest.approx(981.2)
    assert row["worldloom"]["mean"] == 950.0
    assert row["worldloom"]["std"] is None, "one seed has no deviation over seeds"
    assert row["authors"]["mean"] == 980.0


def test_a_run_that_is_not_at_its_end_has_no_point_beyond_itself():
    target = TARGETS["tdmpc2/cup-catch"]
    rows = compared(target, [episode(51_000, 5.0), evaluation(40_000, [1.0])])
    assert [row["env_steps"] for row in rows] == [25_000, 50_000]
    assert all(row["published"] is None for row in rows)
    assert compared(target, []) == []


def test_without_published_numbers_the_end_is_compared():
    rows = compared(TARGETS["gym/pendulum"], [evaluation(5_070, [-100.0, -200.0])])
    row = at(rows, 5_000, "evaluation")
    assert row["published"] is None
    assert row["worldloom"]["mean"] == -150.0


def test_an_end_at_which_nothing_was_published_is_compared_with_the_authors_code():
    target = TARGETS["tdmpc2/cup-catch"]
    target = replace(target, settings={**target.settings, "env_steps": 40_000})
    records = [evaluation(40_058, [970.0]), evaluation(40_000, [980.0], by="authors")]
    row = at(compared(target, records), 40_000, "evaluation")
    assert row["published"] is None
    assert (row["worldloom"]["mean"], row["authors"]["mean"]) == (970.0, 980.0)


def test_the_table_has_the_authors_only_where_they_were_run():
    target = TARGETS["tdmpc2/cup-catch"]
    ours = [evaluation(100_000, [950.0])]
    lines = comparison_table(compared(target, ours))
    assert "authors" not in lines[0]
    assert "981.2 +- 5.7" in lines[-1] or "981.2 +- 5.7" in "".join(lines)
    both = comparison_table(compared(target, [*ours, evaluation(100_000, [981.0], by="authors")]))
    assert "authors' code here" in both[0]
    assert "981.0" in "".join(both)
