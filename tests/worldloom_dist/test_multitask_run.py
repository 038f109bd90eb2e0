"""Runs of several tasks, from the command line to the rows."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from itertools import count
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from tests.worldloom_dist.local_runs import completed, restored_threads, start
from tests.worldloom_dist.mortal_envs import MortalEnv
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.core.exceptions import ConfigurationError, EnvFailureError, TrainingError
from worldloom.core.sequence import PolicyVersion, StreamId
from worldloom.data.codec import make_chunk
from worldloom.envs.config import EnvConfig
from worldloom.envs.consent import UntrustedEnvError, sign_run
from worldloom_dist.actors.evaluation import EvaluationStoppedError
from worldloom_dist.evaluate import evaluate, load_policy
from worldloom_dist.launch import main as launch
from worldloom_dist.metrics.media import subject_of
from worldloom_dist.page.state import RunState
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay import recovery
from worldloom_dist.replay.__main__ import main as replay
from worldloom_dist.replay.history import EpisodeHistory
from worldloom_dist.replay.shard_rows import ShardRows
from worldloom_dist.replay.verify import verify_run
from worldloom_dist.run.builders import build_evaluator, build_shard
from worldloom_dist.run.claim import run_name
from worldloom_dist.run.cli import parse, read_config
from worldloom_dist.run.closing import result_line
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.plan import Plan, resolve
from worldloom_dist.run.tasks import env_cycles

LIST = "toy:point,toy:counting,gym:Pendulum-v1"
NAMES = ["point", "counting", "Pendulum-v1"]
TWO = ["--env", "toy:point,toy:counting"]
WORDS = [*TINY["tdmpc2:ci"], "--env", LIST, "--workers", "3", "--env-steps", "240"]
SIZES = [2, 2, 1]


def plan_of(*words: str) -> Plan:
    return resolve(parse([*TINY["tdmpc2:ci"], *words]))


_threads = pytest.fixture(autouse=True)(restored_threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three tasks; tests read it or copy it."""
    folder = tmp_path_factory.mktemp("runs") / "multi"
    return completed(folder, *WORDS, "--eval-episodes", "2", "--eval-every", "0")


def test_every_row_says_its_task_and_has_zeros_where_the_task_has_nothing(made: Path) -> None:
    played: Counter[int] = Counter()
    for rows in EpisodeHistory(made / "replay").episodes():
        (task,) = set(rows["obs/task"].tolist())
        played[task] += len(rows["is_first"])
        assert not rows["action"][:, SIZES[task] :].any()
        assert not rows["obs"][:, [4, 3, 3][task] :].any()
    assert set(played) == {0, 1, 2}
    assert verify_run(made).problems == []


def test_the_folder_says_what_every_task_is(made: Path) -> None:
    config = json.loads((made / "config.json").read_text())
    assert list(config["run"]["env"]["tasks"]) == NAMES
    assert [task["name"] for task in config["env"]["tasks"]] == NAMES
    assert read_config(made).env.tasks["point"]["episode_limit"] == 40
    assert resolve(read_config(made)).env_spec.tasks == plan_of(*WORDS).env_spec.tasks


def test_a_file_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "tasks.toml"
    file.write_text('[a]\nenv = "toy:point"\n[b]\nenv = "toy:counting"\n', encoding="utf-8")
    run = tmp_path / "run"
    words = [*TINY["tdmpc2:ci"], "--env", f"mt:{file}", "--env-steps", "60"]
    assert start(run, *words).run() == "completed"
    file.unlink()
    assert start(run, "--resume", str(run), "--env-steps", "90").run() == "completed"


def test_a_file_of_one_task_beside_an_offline_run_is_that_env(tmp_path: Path) -> None:
    """There no command line has made it that env before."""
    file = tmp_path / "one.toml"
    file.write_text('[a]\nenv = "toy:point"\ntime_limit = 7\n', encoding="utf-8")
    config = dataclasses.replace(
        parse([*TINY["tdmpc2:ci"], "--env", "toy:point"]), env=EnvConfig(env=f"mt:{file}")
    )
    plan = resolve(config)
    assert (plan.env.env, plan.env.time_limit, plan.env_spec.tasks) == ("toy:point", 7, ())
    assert (plan.config.env.env, plan.config.env.time_limit) == ("toy:point", 7)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*TWO, "--agent", "dreamerv3:ci"], "learns one task, and --env names 2"),
        ([*TWO, "--agent", "mlp:ci"], "learns one task, and --env names 2"),
        ([*TWO, "--gateway-port", "50999"], "gateway_port is for one task"),
        ([*TWO, "--agent.episodic", "on"], "agent.episodic on is for one task"),
        ([*TWO, "--agent.horizon", "60"], "an episode of point has at most 41"),
        ([*TWO, "--env.pixels", "True"], "env.pixels is for one task"),
        (["--env", "toy:point,toy:pixel"], "several tasks can have vectors"),
        (["--env", "mt:nowhere.toml"], "the list of tasks nowhere.toml cannot be read"),
        (["--env", "toy:point,dmc:cartpole-swingup"], "env.action_repeat must be the same"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_work_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    base = TINY["tdmpc2:ci"] if "--agent" not in words else ["--preset", "debug"]
    more = ["--eval-episodes", "0", "--runtime", "local", "--run-dir", str(folder)]
    assert launch([*base, *more, *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if said in line]
    assert len(lines) == 1
    assert not folder.exists()


@pytest.mark.parametrize(("workers", "shards"), [(4, 2), (2, 4), (3, 2), (1, 1), (5, 3)])
def test_each_shard_that_has_rows_gets_every_task(workers: int, shards: int) -> None:
    words = ["--workers", str(workers), "--replay.shards", str(shards), "--envs-per-worker", "1"]
    plan = plan_of(*TWO, *words, "--replay.capacity-steps", "1000")
    of_shard: dict[int, Counter[int]] = {}
    for slot in range(workers):
        (cycle,) = env_cycles(plan, slot, 0, 1) or [()]
        share = {task: 1 / len(cycle) for task in cycle}
        of_shard.setdefault(slot % shards, Counter()).update(share)
    for played in of_shard.values():
        assert played[0] == pytest.approx(played[1])
    assert len(of_shard) == min(workers, shards)


def test_a_run_of_one_task_has_no_turns() -> None:
    alone = plan_of("--env", "toy:point", "--workers", "2")
    assert env_cycles(alone, 0, 0, 1) is None


def test_envs_of_one_worker_share_the_tasks() -> None:
    plan = plan_of("--env", LIST, "--workers", "1", "--envs-per-worker", "3")
    assert env_cycles(plan, 0, 0, 3) == [(0,), (1,), (2,)]
    assert env_cycles(plan, 0, 2, 1) == [(2,)]


def test_runs_are_named_after_their_list() -> None:
    assert run_name(parse(["--env", LIST])) == "point-and-2"
    assert run_name(parse(["--env", "mt:dmc10"])) == "mt-dmc10"


def test_a_list_is_as_long_as_its_tasks_together() -> None:
    one = parse(["--env", "dmc:walker-walk", "--agent", "tdmpc2:5m"])
    ten = parse(["--env", "mt:dmc10", "--agent", "tdmpc2:5m"])
    assert (ten.env_steps, ten.eval_every) == (10 * one.env_steps, 10 * one.eval_every)


@pytest.mark.parametrize("env", ["dmc:cup-catch,Pendulum-v1", "Pendulum-v1,dmc:cup-catch"])
def test_a_mixed_list_is_as_long_as_its_tasks_together_in_any_order(env: str) -> None:
    alone = [parse(["--env", one, "--agent", "tdmpc2:5m"]) for one in env.split(",")]
    both = parse(["--env", env, "--agent", "tdmpc2:5m"])
    assert both.env_steps == sum(one.env_steps for one in alone)
    assert both.eval_every == sum(one.eval_every for one in alone)


def test_an_evaluation_has_its_time_for_each_task() -> None:
    plan = plan_of("--env", LIST, "--eval-timeout-s", "7", "--eval-episodes", "1")
    assert plan.config.eval_timeout_s == 7
    assert plan.eval_timeout_s == 21
    assert plan_of("--env", "toy:point").eval_timeout_s == RunConfig().eval_timeout_s
    assert parse(["--env", "mt:dmc10"]).eval_timeout_s == RunConfig().eval_timeout_s
    for tasks, want in (((), "21"), (["point"], "7")):
        evaluator = build_evaluator(plan, tasks=tasks)
        with (
            patch("worldloom_dist.actors.evaluation.time.monotonic", count(0, 10).__next__),
            pytest.raises(EvaluationStoppedError, match=f"longer than {want} s"),
        ):
            evaluator.evaluate()


def test_one_task_without_a_limit_cuts_no_other_ones_episodes(tmp_path: Path) -> None:
    file = tmp_path / "tasks.toml"
    lines = ['[a]\nenv = "Pendulum-v1"\ntime_limit = 20000', '[b]\nenv = "toy:counting"']
    file.write_text("\n".join(lines), encoding="utf-8")
    assert plan_of("--env", f"mt:{file}").eval_max_steps == 20_000


def test_published_settings_hold_for_each_task() -> None:
    pytest.importorskip("dm_control")
    words = ["--env", "dmc:cartpole-swingup,dmc:pendulum-swingup", "--agent", "tdmpc2:5m"]
    plan = resolve(parse([*words]))
    assert plan.env_spec.action_repeat == 2
    assert [task.episode_limit for task in plan.env_spec.tasks] == [500, 500]
    assert plan.spec.prefill_agent_steps == 5000
    assert plan.env_spec.tasks[0].settings["action_repeat"] == 2


def test_code_of_a_task_does_not_run_unasked(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text('open(__file__ + ".ran", "w").close()\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    run = shutil.copytree(made, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["run"]["env"]["tasks"]["point"]["env"] = "evil:Env"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UntrustedEnvError, match="module evil"):
        evaluate(run, episodes=1)
    config["run"]["env"]["env"] = f"mt:{tmp_path / 'evil.toml'}"
    config["run"]["env"]["tasks"] = {}
    (tmp_path / "evil.toml").write_text('[a]\nenv = "evil:Env"\n[b]\nenv = "toy:point"\n')
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="does not say which"):
        evaluate(run, episodes=1)
    toy = {"env": "toy:point", "settings": {}}
    listed = {"env": f"mt:{tmp_path / 'evil.toml'}", "settings": {}}
    for env, tasks, said in (
        ("evil:Env", {"a": toy}, "env.tasks is for a list of envs"),
        ("mt:dmc10", {"a": listed, "b": toy}, "which cannot be one of several tasks"),
        ("mt:dmc10", {"a": toy, "b": {"env": "rllib:x", "settings": {}}}, "RLlib's envs are known"),
    ):
        config["run"]["env"] |= {"env": env, "tasks": tasks}
        (run / "config.json").write_text(json.dumps(config))
        for read in (evaluate, load_policy):
            with pytest.raises(ConfigurationError, match=said):
                read(run)
    assert not list(tmp_path.glob("*.ran"))
    sign_run(tmp_path, "toy:point,evil:Env")
    assert (tmp_path / "owner.sig").exists()


def test_every_task_is_trained_by_its_share_and_a_shard_that_is_opened_again_draws_alike(
    made: Path, tmp_path: Path
) -> None:
    replay = shutil.copytree(made / "replay", tmp_path / "replay")
    plan = resolve(read_config(made))
    drawn = []
    for _ in range(2):
        shard = build_shard(plan, 0, replay)
        rows = shard.rows.buffer
        windows = rows.sample(300, np.random.default_rng(0))
        shard.close()
        drawn.append(windows.columns)
    for name, column in drawn[0].items():
        np.testing.assert_array_equal(column, drawn[1][name])
    counts = np.bincount(drawn[0]["obs/task"][:, 0], minlength=3)
    assert counts.min() > 50


def test_every_task_is_drawn_as_often_however_much_is_stored_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While rows arrive, after the shard is opened again, and when that takes many chunks at
    once.
    """
    plan = plan_of(*TWO)
    rng = np.random.default_rng(0)
    store_run = ShardRows.store_run

    def shares() -> list[int]:
        drawn = shard.sample(SampleRequest(600, (1, 2))).columns["obs/task"]
        assert (drawn == drawn[:, :1]).all()
        return np.bincount(drawn[:, 0], minlength=2).tolist()

    shard = build_shard(plan, 0, tmp_path)
    for task, chunks in ((0, 1000), (1, 100)):
        stream = StreamId(slot=task, incarnation=1, env=0)
        for seq in range(chunks):
            rows = {name: spec.zeros(10) for name, spec in plan.columns.items()}
            rows["obs"] = rng.random((10, 4), dtype=np.float32)
            rows["obs/task"][:] = task
            rows["is_first"] = np.arange(10) == 0
            shard.append(make_chunk(stream, seq, PolicyVersion(0, 0), rows))
    assert shares() == [300, 300]
    for shortest in (1, 10**9):
        shard.close()
        monkeypatch.setattr(recovery, "SHORTEST_RUN", shortest)
        with patch.object(ShardRows, "store_run", autospec=True, side_effect=store_run) as runs:
            shard = build_shard(plan, 0, tmp_path)
        assert runs.called == (shortest == 1)
        assert shares() == [300, 300]
    shard.close()


def test_balanced_replay_needs_several_tasks() -> None:
    with pytest.raises(ConfigurationError, match="'balanced' balances several tasks"):
        plan_of("--env", "toy:point", "--replay.selector", "balanced")
    assert plan_of(*TWO, "--replay.selector", "uniform")


def test_each_task_is_evaluated_and_the_command_gives_the_same_numbers(made: Path) -> None:
    last = json.loads((made / "summary.json").read_text())["eval"]
    assert list(last["tasks"]) == NAMES
    assert last["episodes"] == 6
    means = [last["tasks"][name]["return_mean"] for name in NAMES]
    assert last["return_mean"] == pytest.approx(np.mean(means))
    assert "score" not in last, "toys have no range"
    assert [last["tasks"][name]["episodes"] for name in NAMES] == [2, 2, 2]
    assert last["tasks"]["point"]["lengths"] == [40, 40]
    again = evaluate(made)
    assert again["returns"] == last["returns"]
    alone = evaluate(made, tasks=["counting"])
    assert alone["tasks"] == {"counting": last["tasks"]["counting"]}
    with pytest.raises(ConfigurationError, match="no task 'pont'; did you mean point"):
        evaluate(made, tasks=["pont"])


def test_scores_are_on_the_scale_of_each_task(tmp_path: Path) -> None:
    file = tmp_path / "tasks.toml"
    file.write_text(
        '[near]\nenv = "toy:point"\nscore = [0, 40]\n'
        '[count]\nenv = "toy:counting"\nscore = [-10, 10]\n',
        encoding="utf-8",
    )
    words = [*TINY["tdmpc2:ci"], "--env", f"mt:{file}", "--env-steps", "60"]
    run = start(tmp_path / "run", *words, "--eval-episodes", "1")
    assert run.run() == "completed"
    last = json.loads((tmp_path / "run/summary.json").read_text())["eval"]
    near, count = (last["tasks"][name] for name in ("near", "count"))
    assert near["score"] == pytest.approx(100 * near["return_mean"] / 40)
    assert count["score"] == pytest.approx(100 * (count["return_mean"] + 10) / 20)
    assert last["score"] == pytest.approx((near["score"] + count["score"]) / 2)
    best = json.loads((tmp_path / "run/checkpoints/best/manifest.json").read_text())
    assert best["facts"]["score"] == pytest.approx(last["score"])
    assert result_line(last).startswith(f"score    {last['score']:.1f}, return ")
    assert "count " in result_line(last)


def test_a_video_of_each_task_is_named_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pygame")
    words = [*TINY["tdmpc2:ci"], "--env", "gym:Pendulum-v1,gym:MountainCarContinuous-v0"]
    more = ["--env-steps", "60", "--eval-episodes", "1", "--eval-videos", "1"]
    run = start(tmp_path / "run", *words, *more, "--eval-max-steps", "5")
    assert run.run() == "completed"
    names = sorted(path.stem for path in (tmp_path / "run/videos").glob("*"))
    assert names == ["eval-000000060-MountainCarContinuous-v0-0", "eval-000000060-Pendulum-v1-0"]
    subject = subject_of(names[1])
    assert subject == ("evaluation", "0", 60, "Pendulum-v1")
    assert subject.name == "eval/Pendulum-v1"


def test_an_evaluation_that_takes_too_long_names_the_task(made: Path) -> None:
    with pytest.raises(EvaluationStoppedError, match=r"longer than 1e-06 s: .*task point, 0 of 3"):
        evaluate(made, timeout_s=1e-6)


@pytest.fixture
def mortal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list whose second task dies where ``MortalEnv.healthy`` says."""
    monkeypatch.setattr(MortalEnv, "healthy", 1_000_000)
    file = tmp_path / "mortal.toml"
    lines = ['[well]\nenv = "toy:point"', f'[ill]\nenv = "{MortalEnv.__module__}:MortalEnv"']
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def check_told_of_ill(caplog: pytest.LogCaptureFixture) -> None:
    """That no env is left of the task, once, with the reason."""
    told = [record.getMessage() for record in caplog.records if "no env is left" in record.msg]
    (sentence,) = told
    assert "plays task ill" in sentence
    assert "task 'ill': RuntimeError: broken on purpose" in sentence


def test_a_task_that_lost_its_last_env_is_told(
    mortal: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*TINY["tdmpc2:ci"], "--env", f"mt:{mortal}", "--envs-per-worker", "2"]
    more = ["--env-steps", "200", "--actors.max-env-failures", "2"]
    run = start(tmp_path / "run", *words, *more)
    MortalEnv.healthy = 0
    assert run.run() == "completed"
    check_told_of_ill(caplog)
    quarantined = json.loads((tmp_path / "run/summary.json").read_text())["quarantined"]
    assert "task 'ill'" in quarantined["worker-0/env-1"]


def test_a_task_that_is_broken_for_ever_takes_no_other_one_of_its_env_with_it(
    mortal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Fewer envs than tasks, so that one plays them in turn."""
    monkeypatch.setattr(MortalEnv, "STEPS", 3)
    mortal.write_text(mortal.read_text() + '\n[other]\nenv = "toy:counting"', encoding="utf-8")
    words = [*TINY["tdmpc2:ci"], "--env", f"mt:{mortal}"]
    more = ["--env-steps", "300", "--actors.max-env-failures", "2"]
    run = start(tmp_path / "run", *words, *more)
    MortalEnv.healthy = 0
    assert run.run() == "completed"
    check_told_of_ill(caplog)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["quarantined"].keys() == {"worker-0/env-0/ill"}
    steps = {
        task: run.report.snapshot[f"task_agent_steps_total{{task={task}}}"]
        for task in ("well", "ill", "other")
    }
    assert min(steps["well"], steps["other"]) > 10


def test_a_task_whose_env_dies_costs_evaluations_and_the_others_are_trained_to_the_end(
    mortal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MortalEnv, "STEPS", 3)
    words = [*TINY["tdmpc2:ci"], "--env", f"mt:{mortal}", "--envs-per-worker", "2"]
    more = ["--env-steps", "200", "--actors.max-env-failures", "1", "--learner.keep-checkpoints=9"]
    often = ["--eval-every", "60", "--eval-episodes", "1"]
    run = start(tmp_path / "run", *words, *more, *often)
    MortalEnv.healthy = 0
    with pytest.raises(TrainingError, match=r"not be evaluated.*broken on purpose.*task ill"):
        run.run()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["env_steps"] >= 200
    assert summary["evaluations_failed"] >= 2
    assert not (tmp_path / "run/checkpoints/best").exists(), "nothing is known of the list"
    assert "evaluation at" in caplog.text
    MortalEnv.healthy = 1_000_000
    assert start(tmp_path / "run", *words, *more, *often).run() == "completed"


def test_an_evaluation_whose_env_dies_names_the_task(
    mortal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MortalEnv, "STEPS", 3)
    few = ["--actors.max-env-failures", "1", "--eval-episodes", "1"]
    plan = plan_of("--env", f"mt:{mortal}", *few)
    MortalEnv.healthy = 0
    evaluator = build_evaluator(plan)
    with pytest.raises(
        EnvFailureError, match=r"broken on purpose.*\(task ill, 1 of 2 tasks were done\)"
    ):
        evaluator.evaluate()


def test_the_page_and_the_metrics_tell_the_tasks_apart(made: Path) -> None:
    records = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["kind"] == "train"][-1]
    assert (
        sum(last[f"task_agent_steps_total{{task={name}}}"] for name in NAMES)
        == (last["agent_steps_total"])
    )
    windows = [last[f"sampled_windows_total{{task={name}}}"] for name in NAMES]
    assert sum(windows) == 4 * last["train_steps"], "windows of every batch"
    state = RunState(made).read()
    rows = state["run"]["tasks"]
    assert [row["name"] for row in rows] == NAMES
    evaluated = json.loads((made / "summary.json").read_text())["eval"]["tasks"]
    assert [row["eval"] for row in rows] == [evaluated[name]["return_mean"] for name in NAMES]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert rows[0]["train"] == last["task_return_mean{split=train,task=point}"]


def test_a_run_of_one_task_has_no_word_of_tasks(tmp_path: Path) -> None:
    words = [*TINY["tdmpc2:ci"], "--env", "toy:point", "--env-steps", "100", "--eval-episodes", "1"]
    assert start(tmp_path / "run", *words).run() == "completed"
    assert "task" not in (tmp_path / "run/metrics.jsonl").read_text()
    assert "task" not in (tmp_path / "run/summary.json").read_text()
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert "tasks" not in config["env"]
    assert config["run"]["env"]["tasks"] == {}
    for manifest in (tmp_path / "run/checkpoints").glob("*/manifest.json"):
        facts = json.loads(manifest.read_text())["facts"]
        assert "tasks" not in facts["env"]["settings"]
    assert RunState(tmp_path / "run").read()["run"]["tasks"] == []


def test_rows_of_several_tasks_are_exported_and_not_trained_on_without_their_envs(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.parquet"
    assert replay(["export", str(made), str(file)]) == 0
    assert replay(["import", str(made), str(file)]) == 2
    assert "import is for one task" in capsys.readouterr().err
    words = ["--env", "none", "--replay.load", str(file), "--train-steps", "3"]
    assert launch([*words, "--run-dir", str(tmp_path / "run")]) == 2
    assert "replay.load: the rows are of 3 tasks" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_help_of_a_list_has_no_flags_for_its_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        launch([*TWO, "--help"])
    assert ended.value.code == 0
    assert "--env.tasks" not in capsys.readouterr().out
