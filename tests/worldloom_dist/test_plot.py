"""Curves of runs: seeds are combined honestly, and the picture shows them."""

import json
import os

import numpy as np
import pytest

from tests.worldloom_dist.written_runs import write_run
from worldloom.core.exceptions import ConfigurationError
from worldloom.evaluation.seeds import bootstrap_interval
from worldloom_dist import plot
from worldloom_dist.plot import Curve, combine, find_published, iqm, read_run
from worldloom_dist.plot.reference import published_tasks
from worldloom_dist.plot.runs import experiments_of
from worldloom_dist.plot.style import STYLES, number
from worldloom_dist.run.curves import EVALUATION, TRAINING


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


def test_seeds_with_one_point_each_are_combined_at_their_mean_step():
    points = [
        Curve(np.array([step]), np.array([value])) for step, value in ((1.0, 5.0), (3.0, 9.0))
    ]
    both = combine(points)
    assert (both.steps.tolist(), both.values.tolist()) == ([2.0], [7.0])
    assert both.low[0] <= 7.0 <= both.high[0]


def test_seeds_that_share_no_step_have_no_curve_together():
    first = Curve(np.array([0.0, 10.0]), np.array([1.0, 2.0]))
    later = Curve(np.array([20.0]), np.array([7.0]))
    assert combine([first, later]) is None


def without_common_steps(tmp_path):
    """Two seeds, of which the second is evaluated only where the first has ended."""
    folders = [make_run(tmp_path / str(seed), seed) for seed in (1, 2)]
    path = folders[1] / "metrics.jsonl"
    path.write_text(path.read_text().replace('"env_steps": 150', '"env_steps": 250'))
    with (folders[0] / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"kind": "eval", "env_steps": 200, "return_mean": 71.0}))
    return [read_run(folder) for folder in folders]


def test_a_picture_says_which_seeds_share_no_step(tmp_path):
    plot.plot_runs(without_common_steps(tmp_path), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "tdmpc2:ci (2 seeds), seeds without a common step" in text
    assert "Seeds that share no step" in text
    assert "interquartile" not in text


def test_a_seed_that_was_made_twice_is_no_second_seed(tmp_path, capsys):
    folders = [write_run(tmp_path / str(k), records=20, config={"seed": 5}) for k in range(2)]
    plot.plot_runs([read_run(folder) for folder in folders], tmp_path / "a.svg")
    assert "tdmpc2:ci (2 runs, seed 5 twice)" in (tmp_path / "a.svg").read_text()
    assert plot.main([*map(str, folders), "--table"]) == 0
    assert "over 2 runs, seed 5 twice (interquartile mean" in capsys.readouterr().out


def test_seeds_without_an_evaluation_are_not_counted_with_those_that_have_one(tmp_path):
    folders = [
        write_run(tmp_path / str(seed), records=20, config={"seed": seed}, evaluations=seed > 1)
        for seed in (1, 2, 3)
    ]
    plot.plot_runs([read_run(folder) for folder in folders], tmp_path / "a.svg")
    assert "tdmpc2:ci (2 of 3 seeds)" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"init_from": "/runs/other"},
        {"learners": 2},
        {"eval_max_steps": 100},
        {"replay": {"load": "a.npz"}},
        {"replay": {"capacity_steps": 1000}},
        {"replay": {"capacity_gb": 2.0}},
        {"replay": {"stride": 2}},
        {"learner": {"weights_dtype": "bfloat16"}},
        {"learner": {"tf32": False}},
        {"workers": 16},
        {"runtime": "local"},
        {"barrier": True},
        {"inference": "central"},
        {"gateway_port": 50051},
    ],
    ids=str,
)
def test_what_changes_the_learning_makes_another_experiment(tmp_path, change):
    runs = [
        read_run(write_run(tmp_path / str(place), records=4, config=config))
        for place, config in enumerate(({"replay": {}}, {"replay": {}, "seed": 2, **change}))
    ]
    (found,) = experiments_of(runs).values()
    assert len(found) == 2
    assert found[0].label != found[1].label


def test_another_port_or_folder_makes_no_other_experiment(tmp_path):
    changes = ({"gateway_port": 1}, {"gateway_port": 2, "seed": 2, "eval_every": 7, "wandb": True})
    runs = [
        read_run(write_run(tmp_path / str(place), records=4, config=config))
        for place, config in enumerate(changes)
    ]
    (found,) = experiments_of(runs).values()
    assert len(found) == 1


def test_a_run_of_an_earlier_version_is_a_seed_of_the_same_experiment(tmp_path):
    known = {"learners": 1, "init_from": None, "eval_max_steps": None}
    changes = [{"seed": 1}, {"seed": 2, **known}]
    runs = [
        read_run(write_run(tmp_path / str(place), records=4, config=change))
        for place, change in enumerate(changes)
    ]
    (found,) = experiments_of(runs).values()
    assert [experiment.label for experiment in found] == ["tdmpc2:ci"]


def test_a_run_gives_its_curves_and_a_line_that_is_cut_is_left_out(tmp_path):
    run = read_run(make_run(tmp_path / "a", seed=2))
    assert run.experiment == "tdmpc2:ci on toy:point"
    assert run.curve(TRAINING).values.tolist() == [0, 200, 400, 600]
    assert run.curve(EVALUATION).steps.tolist() == [150]
    names = {TRAINING, EVALUATION, "loss{name=total}", "env steps/s", "updates/s"}
    assert set(run.history.names) == names


def test_every_axis_tells_the_same_run(tmp_path):
    run = read_run(write_run(tmp_path / "a", records=100))
    by_steps, by_updates, by_time = (
        run.curve(EVALUATION, axis) for axis in ("env_steps", "updates", "time")
    )
    assert by_steps.values.tolist() == by_updates.values.tolist() == by_time.values.tolist()
    assert by_steps.steps.tolist() == [1000, 2000, 3000, 4000, 5000]
    assert by_updates.steps.tolist() == [500, 1500, 2500, 3500, 4500]
    assert by_time.steps.tolist() == pytest.approx([200 * k / 3600 for k in range(1, 6)])
    assert (by_steps.high - by_steps.values).tolist() == pytest.approx([1250 / 12] * 5)


def test_what_a_run_did_again_is_drawn_once(tmp_path):
    folder = write_run(tmp_path / "a", records=10)
    with (folder / "metrics.jsonl").open("a") as file:  # killed, and back at its checkpoint
        for step in (3100, 3300):
            record = {"kind": "train", "env_steps": step, "train_steps": step, "updates_per_s": 7.0}
            file.write(json.dumps(record) + "\n")
    run = read_run(folder)
    assert run.curve("updates/s").steps.tolist() == [500, 1000, 1500, 2000, 2500, 3000, 3100, 3300]
    assert run.curve(EVALUATION).steps.tolist() == [1000, 2000, 3000]


def naive_interval(tasks, resamples, seed):
    """The stratified bootstrap of the interquartile mean, run by run."""
    draw = np.random.default_rng(seed)
    picks = [draw.integers(len(task), size=(resamples, len(task))) for task in tasks]
    found = []
    for k in range(resamples):
        scores = [task[i] for task, pick in zip(tasks, picks, strict=True) for i in pick[k]]
        middle = np.sort(scores)[len(scores) // 4 : len(scores) - len(scores) // 4]
        found.append(middle.mean())
    return np.percentile(found, [2.5, 97.5])


def test_the_interval_is_that_of_a_stratified_bootstrap():
    draw = np.random.default_rng(3)
    tasks = [draw.normal(size=8), 100 + draw.normal(size=4)]
    low, high = bootstrap_interval(tasks, resamples=500, seed=1)
    assert [low, high] == pytest.approx(naive_interval(tasks, 500, 1))
    curves = [np.stack([task, task + 1], axis=1) for task in tasks]
    both = bootstrap_interval(curves, resamples=500, seed=1)
    assert np.allclose(both[0], [low, low + 1]), "a run that is drawn is drawn whole"
    one = bootstrap_interval([np.array([5.0])])
    assert (float(one[0]), float(one[1])) == (5.0, 5.0)
    covered = 0
    for trial in range(200):
        scores = np.random.default_rng(trial).normal(size=20)
        low, high = bootstrap_interval([scores], lambda v: v.mean(axis=0), resamples=300)
        covered += low <= 0 <= high
    assert 0.86 <= covered / 200 <= 0.99


def test_runs_with_other_settings_are_other_experiments(tmp_path):
    changes = [{"seed": 1}, {"seed": 2}, {"seed": 3, "train_ratio": 24.0}, {"eval_every": 700}]
    changes.append({"agent_overrides": {"lr": 0.1}})
    runs = [
        read_run(write_run(tmp_path / str(place), records=4, config=change))
        for place, change in enumerate(changes)
    ]
    (found,) = experiments_of(runs).values()
    assert [(e.label, [run.name for run in e.runs]) for e in found] == [
        ("tdmpc2:ci (agent.lr default, train_ratio default)", ["0", "1", "3"]),
        ("tdmpc2:ci (agent.lr default, train_ratio 24.0)", ["2"]),
        ("tdmpc2:ci (agent.lr 0.1, train_ratio default)", ["4"]),
    ]


def test_the_picture_of_several_seeds_and_experiments_is_written(tmp_path, capsys):
    folders = [make_run(tmp_path / str(seed), seed) for seed in (1, 2, 3)]
    folders.append(make_run(tmp_path / "d", 1, "dreamerv3:ci"))
    words = [*map(str, folders), "-o", str(tmp_path / "all.png"), "--style", "dark", "--x", "time"]
    assert plot.main(words) == 0
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert plot.main([str(folders[0])]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folders[0] / "plot.png")


def test_a_picture_has_a_panel_per_env_and_says_what_it_shows(tmp_path):
    runs = [
        read_run(write_run(tmp_path / f"{env}{seed}", records=30, config=config, seed=seed))
        for env in ("walker-walk", "cup-catch")
        for seed in (1, 2, 3)
        for config in [{"env": {"env": f"dmc:{env}"}, "seed": seed}]
    ]
    picture = tmp_path / "a.svg"
    plot.plot_runs(runs, picture, "Two tasks", references=find_published("dmc/walker-walk"))
    text = picture.read_text()
    for words in (
        "Two tasks",
        "dmc:walker-walk",
        "dmc:cup-catch",
        "tdmpc2:ci (3 seeds)",
        "TD-MPC2, published",
        "95 % interval by the",
        "github.com/nicklashansen/tdmpc2",
        ">return<",
        ">env steps<",
    ):
        assert words in text, words
    assert "from pixels" not in text, "the runs see no images"
    assert "never trained on" not in text


def test_a_loss_on_held_out_data_is_dotted_in_the_panel_of_its_own(tmp_path):
    last = {"loss{name=held_out/total}": 2.5}
    plot.plot_runs([read_run(write_run(tmp_path / "a", last=last))], tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "Dotted loss: on data that is never trained on." in text
    assert "held_out" not in text


def test_published_curves_are_found_by_every_spelling_of_a_task():
    found = find_published("dmc:walker-walk")
    assert [(p.label, p.has_pixels) for p in found] == [
        ("TD-MPC2, published", False),
        ("TD-MPC2 from pixels, published", True),
        ("DreamerV3, published", False),
        ("DreamerV3 from pixels, published", True),
    ]
    assert found[0].curve.steps[:2].tolist() == [100_000, 200_000]
    assert found[0].curve.values[:2].tolist() == [961.9, 973.4]
    for name in ("dmc/cup-catch", "dmc:ball_in_cup-catch", "dmc:ball-in-cup-catch"):
        assert find_published(name)[0].task == "dmc/cup-catch"
    assert find_published("atari:bank_heist")[0].curve.values[-1] == 320
    for task in published_tasks():
        for published in find_published(task):
            assert np.all(np.diff(published.curve.steps) > 0)
            assert "github.com/" in published.source


def test_the_table_compares_runs_and_seeds(tmp_path, capsys):
    folders = [
        write_run(
            tmp_path / f"run-{seed}",
            config={"seed": seed},
            level=-100.0 * seed,
            summary={"status": "completed"},
        )
        for seed in (1, 2, 3)
    ]
    words = [*map(str, folders), f"{tmp_path}/./run-1", "--table"]
    assert plot.main(words) == 0, "a folder that is named twice is one run"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "gym:Pendulum-v1"
    assert lines[1].split()[:3] == ["run", "agent", "seed"]
    assert lines[2].split()[:6] == ["run-1", "tdmpc2:ci", "1", "completed", "5,000", "4,500"]
    assert "over 3 seeds (interquartile mean, 95 % interval)" in lines[5]
    assert len({line.index("completed") for line in lines[2:5]}) == 1
    assert not (folders[0] / "plot.png").exists()


def test_the_table_compares_no_seed_that_died_early_with_whole_ones(tmp_path, capsys):
    folders = [
        write_run(
            tmp_path / f"run-{seed}",
            config={"seed": seed, "eval_every": 100},
            share=0.05 if seed == 3 else 1.0,
            summary={"status": "running" if seed == 3 else "completed"},
        )
        for seed in (1, 2, 3)
    ]
    for path in folders[2].iterdir():
        os.utime(path, (1e9, 1e9))
    assert plot.main([*map(str, folders), "--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].split()[3] == "died"
    assert "over 2 of 3 seeds (interquartile mean" in lines[5]
    assert lines[6] == (
        "tdmpc2:ci: run-3 (died) is left out of it, because its last evaluation is at 200 env steps"
    )


def test_what_cannot_be_drawn_is_one_sentence(tmp_path, capsys):
    folder = make_run(tmp_path / "a")
    cases = {
        str(tmp_path / "nothing"): "holds no run",
        f"{folder} -o {tmp_path / 'x' / 'y.png'}": "there is no folder",
        f"{folder} -o {tmp_path / 'y.xyz'}": "its ending must be one of",
        f"{folder} --reference dmc/walker-wal": "did you mean dmc/walker-walk?",
        f"{folder} --reference dmc/walker-walk": "no run plays dmc/walker-walk",
        f"{folder} --reference dmc/walker-walk --x time": "leave --x out",
    }
    for words, message in cases.items():
        assert plot.main(words.split()) == 2, words
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    (folder / "metrics.jsonl").unlink()
    assert plot.main([str(folder)]) == 2
    assert "no metrics yet" in capsys.readouterr().err
    (folder / "metrics.jsonl").mkdir()
    assert plot.main([str(folder)]) == 2
    assert "metrics.jsonl cannot be read (Is a directory)" in capsys.readouterr().err


def test_a_missing_package_is_named_before_anything_is_read(tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert plot.main([str(tmp_path / "nothing")]) == 2
    assert "pip install 'worldloom-dist[viz]'" in capsys.readouterr().err


def test_a_run_without_env_steps_is_not_drawn_over_them(tmp_path, capsys):
    offline = {"env": {"env": "none"}, "replay": {"capacity_steps": 9, "load": "data.npz"}}
    folder = write_run(tmp_path / "off", config=offline)
    assert plot.main([str(folder), "--x", "env_steps"]) == 2
    assert "x: off was trained from files and has no env steps" in capsys.readouterr().err
    assert not (folder / "plot.png").exists()
    assert plot.main([str(folder), "--x", "time"]) == 0


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
    assert found.curve("loss{name=total}").steps.tolist() == [10.0, 20.0, 30.0]
    other = read_run(make_run(tmp_path / "b"))
    assert other.axis == "env_steps"
    plot.plot_runs([found, other], tmp_path / "both.png")
    plot.plot_runs([found], tmp_path / "one.png")
    (folder / "config.json").write_text(json.dumps({"run": run}).replace("data.npz", "b.npz"))
    plot.plot_runs([found, read_run(folder)], tmp_path / "two.svg")
    assert "b.npz, offline" in (tmp_path / "two.svg").read_text()
    assert (tmp_path / "one.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1500, "1,500"),
        (40_000, "40k"),
        (1_250_000, "1.25M"),
        (-0.25, "\u22120.25"),
        (2e-6, "2e\u22126"),
        (2.5e-4, "2.5e\u22124"),
    ],
)
def test_ticks_are_short_numbers(value, text):
    assert number(value) == text


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("style", list(STYLES))
def test_colours_stand_out_from_their_paper(style):
    paper = luminance(STYLES[style].paper)
    for colour in STYLES[style].series[:4]:
        light, dark = sorted((luminance(colour), paper), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 2.5, colour
    assert len(set(STYLES[style].series)) == len(STYLES[style].series)


def test_a_picture_of_several_runs_replaces_none_of_theirs(tmp_path, capsys):
    folders = [write_run(tmp_path / "runs" / name, records=3) for name in ("a", "b")]
    assert plot.main([str(folders[0])]) == 0
    before = (folders[0] / "plot.png").read_bytes()
    assert plot.main([str(folder) for folder in folders]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "runs" / "plot.png")
    assert (tmp_path / "runs" / "plot.png").is_file()
    assert (folders[0] / "plot.png").read_bytes() == before
    assert not (folders[1] / "plot.png").exists()


def make_run_of_tasks(folder, *, scores=False):
    """Two tasks, of which the first has three of four decisions."""
    make_run(folder)
    tasks = {name: {"name": name, "env": f"toy:{name}"} for name in ("point", "mirror")}
    run = {"agent": "tdmpc2:ci", "env": {"env": "toy:point,toy:mirror", "tasks": tasks}, "seed": 1}
    (folder / "config.json").write_text(json.dumps({"run": run}))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in (100, 200):
            numbers = {
                "task_agent_steps_total{task=point}": 0.75 * step,
                "task_agent_steps_total{task=mirror}": 0.25 * step,
                "task_return_mean{split=train,task=point}": 10.0,
                "episode_return_mean{split=train}": 7.0,
            }
            place = {"env_steps": step, "train_steps": 3 * step}
            file.write(json.dumps({"kind": "train", **place, **numbers}) + "\n")
            parts = {
                "point": {"return_mean": step / 10, "return_std": 1.0},
                "mirror": {"return_mean": 0.0, "return_std": 0.0},
            }
            whole = {"return_mean": step / 20, "return_std": 5.0, "tasks": parts}
            whole |= {"score": 90.0} if scores else {}
            file.write(json.dumps({"kind": "eval", "env_steps": step, **whole}) + "\n")
    return folder


def test_each_task_of_a_run_has_its_own_curve_over_its_own_env_steps(tmp_path):
    run = read_run(make_run_of_tasks(tmp_path / "a"))
    point, mirror = run.tasks
    assert point.curve(EVALUATION).steps.tolist() == [75.0, 150.0]
    assert point.curve(EVALUATION).values.tolist() == [10.0, 20.0]
    assert point.curve(EVALUATION).high.tolist() == [11.0, 21.0]
    assert point.curve(TRAINING).values.tolist() == [10.0, 10.0]
    assert mirror.curve(EVALUATION).steps.tolist() == [25.0, 50.0]
    assert mirror.curve(TRAINING) is None
    assert run.curve(EVALUATION).values.tolist() == [5.0, 10.0]


def test_a_share_that_falls_for_a_moment_loses_no_evaluation(tmp_path):
    """On Ray the decisions of a task are counted a little after the env steps."""
    folder = make_run_of_tasks(tmp_path / "a")

    def train(env_steps, point, mirror):
        numbers = {
            "task_agent_steps_total{task=point}": point,
            "task_agent_steps_total{task=mirror}": mirror,
            "episode_return_mean{split=train}": 7.0,
        }
        return {"kind": "train", "env_steps": env_steps, "train_steps": env_steps, **numbers}

    evaluation = {"tasks": {"point": {"return_mean": 3.0}}, "return_mean": 1.0}
    records = [
        train(20_000, 5_000, 14_800),
        {"kind": "eval", "env_steps": 20_050, **evaluation},
        train(20_500, 5_000, 15_300),
    ]
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / "metrics.jsonl").write_text("".join(lines))
    point = read_run(folder).tasks[0]
    assert point.curve(EVALUATION).values.tolist() == [3.0]
    back = [train(10_000, 2_500, 7_500), {"kind": "eval", "env_steps": 10_000, **evaluation}]
    lines += [json.dumps(record) + "\n" for record in back]
    (folder / "metrics.jsonl").write_text("".join(lines))
    point = read_run(folder).tasks[0]
    assert point.curve(EVALUATION).steps.tolist() == [2_500.0], "went on from a checkpoint"


def with_settings(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    for name, task in config["run"]["env"]["tasks"].items():
        task["settings"] = settings.get(name, {})
    (folder / "config.json").write_text(json.dumps(config))
    return read_run(folder)


def test_tasks_of_other_settings_are_no_seeds_of_each_other(tmp_path):
    short = with_settings(make_run_of_tasks(tmp_path / "a"), point={"time_limit": 10})
    long = with_settings(make_run_of_tasks(tmp_path / "b"), point={"time_limit": 20})
    for runs in ([short, long], [short.tasks[0], long.tasks[0]]):
        (both,) = experiments_of(runs).values()
        assert len(both) == 2
    assert "time_limit 10" in both[0].label
    (mirrors,) = experiments_of([short.tasks[1], long.tasks[1]]).values()
    assert [len(one.runs) for one in mirrors] == [2]


@pytest.mark.parametrize(
    "tasks",
    [[1], {"point": "toy:point"}, {"point": {}}, {"point": {"env": "toy:p", "settings": 3}}],
)
def test_damaged_tasks_are_one_sentence(tmp_path, tasks):
    folder = make_run_of_tasks(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config["run"]["env"]["tasks"] = tasks
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="holds no run"):
        read_run(folder)


def test_records_of_tasks_that_are_none_are_passed_over(tmp_path):
    folder = make_run_of_tasks(tmp_path / "a")
    odd = {"task_agent_steps_total{task=point}": "many", "episode_return_mean{split=train}": 7.0}
    records = [
        {"kind": "train", "env_steps": 100, **odd},
        {"kind": "eval", "env_steps": 100, "return_mean": 1.0, "tasks": [3]},
        {"kind": "eval", "env_steps": 200, "return_mean": 2.0, "tasks": {"point": 3}},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    run = read_run(folder)
    assert run.curve(EVALUATION).values.tolist() == [1.0, 2.0]
    assert run.tasks[0].curve(TRAINING) is None


def test_a_picture_of_several_tasks_has_a_panel_for_each_beside_runs_of_one(tmp_path):
    folders = [make_run_of_tasks(tmp_path / "a"), make_run(tmp_path / "b", seed=1)]
    plot.plot_runs([read_run(folder) for folder in folders], tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for words in ("2 tasks: point, mirror", "toy:mirror", "toy:point", "mean return"):
        assert words in text
    assert "tdmpc2:ci (tasks point, mirror)" in text
    assert "tdmpc2:ci (tasks this one alone)" in text
    assert "One task of several: over its own env steps." in text


def test_the_score_over_tasks_is_drawn_where_every_run_has_one(tmp_path):
    scored = read_run(make_run_of_tasks(tmp_path / "a", scores=True))
    plain = read_run(make_run_of_tasks(tmp_path / "b"))
    plot.plot_runs([scored], tmp_path / "a.svg")
    plot.plot_runs([scored, plain], tmp_path / "b.svg")
    assert scored.scored().curve(EVALUATION).values.tolist() == [90.0, 90.0]
    for axis, steps in (("env_steps", [100.0, 200.0]), ("updates", [300.0, 600.0])):
        assert scored.scored().curve(EVALUATION, axis).steps.tolist() == steps
    assert scored.tasks[0].curve(EVALUATION, "updates").steps.tolist() == [300.0, 600.0]
    assert "mean score" in (tmp_path / "a.svg").read_text()
    assert "mean score" not in (tmp_path / "b.svg").read_text()


def test_a_table_names_the_last_evaluation_of_each_task(tmp_path, capsys):
    assert plot.main([str(make_run_of_tasks(tmp_path / "a")), "--table"]) == 0
    said = capsys.readouterr().out
    assert "a: last evaluation by task: toy:point 20.0, toy:mirror 0.0" in said


def test_a_picture_that_cannot_be_drawn_to_its_end_leaves_the_one_before(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def interrupted(self, path, **_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    runs = [read_run(make_run(tmp_path / "a"))]
    picture = tmp_path / "plot.png"
    plot.plot_runs(runs, picture)
    before = picture.read_bytes()
    monkeypatch.setattr(Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plot.plot_runs(runs, picture)
    assert picture.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "plot.png"]
