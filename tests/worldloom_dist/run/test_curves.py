"""Curves hold what a run has, and not what it did again after it had gone back."""

import json

from tests.worldloom_dist.written_runs import write_run
from worldloom_dist.page.state import RunState
from worldloom_dist.run.curves import EVALUATION, History


def record(env_steps, train_steps, loss, hours=0.0):
    return {
        "kind": "train",
        "env_steps": env_steps,
        "train_steps": train_steps,
        "wall_time_s": hours * 3600,
        "loss{name=total}": loss,
    }


WENT_BACK = [
    record(500, 400, 6.0, 1.0),
    record(1000, 1000, 5.0, 2.0),
    record(1400, 1400, 3.2, 3.0),
    record(1500, 1500, 3.0, 4.0),
    record(1501, 1100, 4.9, 4.1),  # a learner died, and its successor began at a checkpoint
    record(1600, 1400, 3.5, 5.0),
]


def evaluation(env_steps, value):
    return {"kind": "eval", "env_steps": env_steps, "return_mean": value}


def test_updates_that_were_made_again_are_in_no_curve_over_updates():
    history = History().add_all(WENT_BACK)
    curve = history.curve("loss{name=total}", "updates")
    assert curve.steps.tolist() == [400, 1000, 1100, 1400]
    assert curve.values.tolist() == [6.0, 5.0, 4.9, 3.5]
    assert len(history.curve("loss{name=total}").steps) == 6, "no env step was made again"
    assert len(history.curve("loss{name=total}", "time").steps) == 6


def test_evaluations_of_updates_that_were_made_again_are_in_no_curve_over_updates():
    history = History().add_all(WENT_BACK)
    for env_steps, value in ((400, 1.0), (1000, 2.0), (1450, 3.0), (1600, 4.0), (1700, 5.0)):
        history.add(evaluation(env_steps, value))
    assert history.curve(EVALUATION).values.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert history.curve(EVALUATION, "updates").values.tolist() == [1.0, 2.0, 5.0], (
        "at one place the newer one counts"
    )
    assert history.place(1450, "updates") is None
    assert history.place(1000, "updates") == 1000


def test_the_page_has_no_place_for_updates_that_were_made_again(tmp_path):
    folder = write_run(tmp_path / "run", records=0)
    lines = [*WENT_BACK, evaluation(1450, 3.0)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = RunState(folder).read()
    assert state["axes"]["updates"] == [400, 1000, None, None, 1100, 1400]
    assert state["axes"]["env_steps"] == [500, 1000, 1400, 1500, 1501, 1600]
    assert state["evaluations"][0]["updates"] is None


def test_a_loss_of_an_observation_of_any_name_has_a_curve(tmp_path):
    folder = write_run(tmp_path / "run", records=0)
    key = 'loss{name="obs/lidar,front"}'
    line = {**record(10, 10, 1.0), key: 2.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    curves = RunState(folder).read()["curves"]
    assert [curve["name"] for curve in curves if curve["group"] == "loss"] == [
        "total",
        "obs/lidar,front",
    ]
