"""What a run says of itself: the numbers of the summary, of the line, and of the folder."""

import dataclasses
import json
import logging
import types

import pytest

from worldloom.envs.config import EnvConfig
from worldloom_dist.ports import RowCounters
from worldloom_dist.run import report as module
from worldloom_dist.run.cli import parse
from worldloom_dist.run.counts import Counts
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.plan import resolve
from worldloom_dist.run.presets import PRESETS
from worldloom_dist.run.report import Report


@pytest.fixture
def plan():
    return resolve(parse(["--preset", "debug", "--env-steps", "1000", "--env.action-repeat", "2"]))


def counts(agent_steps=300, **more) -> Counts:
    counters = RowCounters(
        inserted=agent_steps + 9, stored=agent_steps, evicted=9, agent_steps=agent_steps
    )
    owed = 12 * (agent_steps - 100) + 100 * 48
    return Counts(
        **{
            "counters": counters,
            "positions": owed,
            "train_steps": owed // 48,
            "policy_version": "1.7",
            **more,
        }
    )


def test_the_ratio_leaves_out_the_prefill_and_its_pretraining(plan, tmp_path):
    report = Report(plan, RunFolder(tmp_path), {})
    report.update(counts(), {})
    assert report.train_ratio_actual == pytest.approx(12.0)
    assert report.env_steps == 600
    assert "updates/step 0.25 (target 0.25)" in report.line()
    assert "env_steps 600/1,000" in report.line()


def test_restarts_of_envs_go_on_over_a_hub_that_began_again(plan, tmp_path):
    report = Report(plan, RunFolder(tmp_path), {"restarts": {"env": 1}})
    errors = [
        {"env_errors_total{reason=raised}": 3.0, "env_errors_total{reason=hung}": 1.0},
        {"env_errors_total{reason=raised}": 2.0},
        {"env_errors_total{reason=raised}": 5.0},
    ]
    for snapshot in errors:
        before = report.counts
        report.update(counts(restarts={"worker": 1}), snapshot)
    assert report.summary("running")["restarts"]["env"] == 1 + 4 + 5
    assert report.summary("running")["restarts"]["worker"] == 1
    assert report.increments(before)["worker_restarts_total{kind=env}"].value == 3


def test_throughput_is_of_the_whole_run(plan, tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    first = Report(plan, RunFolder(tmp_path), {})
    first.update(counts(0, train_steps=0), {})
    now[0] += 50.0
    first.update(counts(300, train_steps=100), {})
    summary = first.summary("stopped")
    assert summary["throughput"] == {"env_steps_per_s": 12.0, "updates_per_s": 2.0, "seconds": 50.0}
    second = Report(plan, RunFolder(tmp_path), summary)
    assert second.summary("running")["throughput"] == summary["throughput"], "nothing was done yet"
    now[0] += 1000.0  # a start takes its time
    second.update(counts(300, train_steps=100), {})
    now[0] += 50.0
    second.update(counts(450, train_steps=100), {})
    assert second.summary("completed")["throughput"] == {
        "env_steps_per_s": 9.0,
        "updates_per_s": 1.0,
        "seconds": 100.0,
    }
    del summary["throughput"]["seconds"]  # as earlier versions wrote it
    old = Report(plan, RunFolder(tmp_path), {**summary, "wall_time_s": 60.0})
    assert old.summary("running")["throughput"]["env_steps_per_s"] == 10.0


def test_what_failed_beside_the_run_is_in_its_summary(plan, tmp_path):
    report = Report(plan, RunFolder(tmp_path), {"evaluations_failed": 2})
    assert "sinks_given_up" not in report.summary("running")
    report.evaluations_failed += 1
    report.sinks.given_up = {"wandb": "ConnectionError: no route"}
    summary = report.summary("running")
    assert summary["evaluations_failed"] == 3
    assert summary["sinks_given_up"] == {"wandb": "ConnectionError: no route"}


def test_phases_are_named_before_anything_binds(plan, tmp_path):
    report = Report(plan, RunFolder(tmp_path), {})
    report.update(counts(40, train_steps=0, positions=0), {})
    assert "prefill 40/100" in report.line()
    report.update(counts(100, train_steps=20), {})
    assert "pretraining 20/100" in report.line()


def test_a_resumed_run_counts_on(plan, tmp_path):
    earlier = {
        "wall_time_s": 50.0,
        "episodes": 7,
        "restarts": {"worker": 2},
        "rows": {"lost_open": 3},
    }
    earlier["eval"] = {"return_mean": 1.0}
    report = Report(plan, RunFolder(tmp_path), earlier)
    snapshot = {
        "episodes_total{reason=truncated}": 4.0,
        "episodes_total{reason=error}": 1.0,
        "policy_lag_updates:p99": 5.0,
    }
    report.update(counts(restarts={"worker": 1, "hub": 1}, lost_open=2), snapshot)
    summary = report.summary("running")
    assert summary["episodes"] == 12
    assert summary["restarts"] == {
        "env": 0,
        "worker": 3,
        "inference": 0,
        "shard": 0,
        "learner": 0,
        "hub": 1,
    }
    assert summary["rows"]["lost_open"] == 5
    assert summary["wall_time_s"] > 50
    assert summary["eval"] == {"return_mean": 1.0}
    assert summary["staleness"]["p99"] == 5.0
    counters = summary["rows"]
    assert counters["inserted"] == counters["stored"] + counters["evicted"] + counters["lost_acked"]


def test_episodes_are_not_forgotten_when_the_hub_is_restarted(plan, tmp_path):
    report = Report(plan, RunFolder(tmp_path), {})
    for episodes in (5.0, 9.0, 2.0, 4.0):
        report.update(counts(), {"episodes_total{reason=truncated}": episodes})
    assert report.summary("running")["episodes"] == 13


def test_who_waits_names_the_bottleneck(plan, tmp_path):
    report = Report(plan, RunFolder(tmp_path), {})
    report.update(counts(blocked_s={"insert": 90.0, "sample": 1.0}), {})
    assert report.bottleneck() == "learner-bound"
    report.update(counts(blocked_s={"insert": 1.0, "sample": 90.0}), {})
    assert report.bottleneck() == "env-bound"


def test_the_folder_keeps_the_runs_id_and_its_incarnations_rise(plan, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.hold()
    first = folder.open(plan.config, plan.env_spec.to_dict(), {})
    assert folder.open(plan.config, plan.env_spec.to_dict(), {}) == first
    assert len((folder.path / "command.txt").read_text().splitlines()) == 1, (
        "of a run that goes on nothing is changed"
    )
    assert folder.describe(plan.config, plan.env_spec.to_dict(), {}) == first
    assert [folder.next_incarnation("learner") for _ in range(3)] == [1, 2, 3]
    assert folder.next_incarnation("driver") == 1
    folder.write_summary({"a": 1})
    assert json.loads(folder.summary_path.read_text()) == {"a": 1}
    assert {"config.json", "command.txt", "versions.txt", "summary.json"} <= {
        p.name for p in folder.path.iterdir()
    }
    assert len((folder.path / "command.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves(preset):
    if preset.startswith("crafter"):
        pytest.importorskip("crafter", reason="crafter is not installed: pip install crafter")
    if preset.startswith("crafter"):  # an extra of its own, built from source
        pytest.importorskip(
            "crafter", reason="needs crafter: pip install 'worldloom-dist[crafter]'"
        )
    config = parse(["--preset", preset])
    assert config.preset == preset
    resolved = resolve(config)
    assert resolved.spec.sampling.window_rows < config.replay.capacity_steps
    assert resolved.target_agent_steps * resolved.env_spec.action_repeat >= config.env_steps


def test_the_summary_says_what_binds_over_the_last_minutes(plan, tmp_path):
    report = Report(plan, RunFolder(tmp_path), {})
    spent = {
        "learner_seconds_total{phase=forward_backward}": 99.0,
        "learner_seconds_total{phase=wait_data}": 1.0,
    }
    report.update(counts(), {**spent, "actor_seconds_total{state=env}": 10.0})
    binding = report.summary("running")["binding"]
    assert (binding["resource"], binding["share"]) == ("learner", 0.99)


def records_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_record_says_what_the_summary_says_though_the_hub_hears_of_it_later(plan, tmp_path):
    report = Report(plan, RunFolder(tmp_path), {})
    hub = {
        "eval_return_mean": 1.0,
        "learner_updates_total": 3.0,
        "env_steps_total": 5.0,
        "replay_steps": 7.0,
        "loss{name=x}": 0.5,
    }
    report.update(counts(), hub)
    report.note_evaluation(
        {"env_steps": 600, "episodes": 1, "return_mean": 9.0, "returns": [9.0], "lengths": [40]}
    )
    report.record()
    record = records_of(tmp_path)[-1]
    summary = report.summary("completed")
    assert record["eval_return_mean"] == summary["eval"]["return_mean"] == 9.0
    assert record["episode_length_steps_mean{split=eval}"] == 40
    assert record["learner_updates_total"] == record["train_steps"] == summary["train_steps"]
    assert record["env_steps_total"] == record["env_steps"] == summary["env_steps"]
    assert record["replay_inserted_steps_total"] == summary["rows"]["inserted"]
    assert record["replay_steps"] == summary["rows"]["stored"]
    assert record["loss{name=x}"] == 0.5


def test_counters_in_records_go_on_after_a_resume(plan, tmp_path):
    first = Report(plan, RunFolder(tmp_path), {})
    first.update(counts(), {"weights_published_total": 12.0, "actor_seconds_total{state=env}": 3.0})
    first.record()
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "weights_publ')  # the run was killed here
    resumed = Report(plan, RunFolder(tmp_path), first.summary("running"))
    resumed.update(
        counts(310), {"weights_published_total": 1.0, "actor_seconds_total{state=env}": 0.5}
    )
    (tmp_path / "metrics.jsonl").write_text((tmp_path / "metrics.jsonl").read_text() + "\n")
    resumed.record()
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (record["weights_published_total"], record["actor_seconds_total{state=env}"]) == (
        13.0,
        3.5,
    )
    assert record["env_steps_total"] == 620


def test_what_is_not_finite_is_named_once_and_no_record_holds_it(plan, tmp_path, caplog):
    report = Report(plan, RunFolder(tmp_path), {})
    for loss in (float("nan"), float("inf"), 1.0):
        report.update(counts(), {"loss{name=total}": loss, "grad_norm{name=all}": 2.0})
        report.record()
    assert caplog.text.count("left out of the records: loss{name=total} is nan") == 1
    assert [record.get("loss{name=total}") for record in records_of(tmp_path)] == [None, None, 1.0]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_evaluation_that_is_not_finite_is_named_and_read_again(plan, tmp_path, caplog):
    report = Report(plan, RunFolder(tmp_path), {})
    report.note_evaluation(
        {"env_steps": 600, "episodes": 1, "return_mean": float("inf"), "returns": [float("inf")]}
    )
    assert "the mean return is inf" in caplog.text
    RunFolder(tmp_path).write_summary(report.summary("stopped"))
    found = RunFolder(tmp_path).read_json("summary.json")
    assert found["eval"]["return_mean"] is None
    again = Report(plan, RunFolder(tmp_path), found)
    again.update(counts(), {})
    assert "eval" not in again.line()


def test_an_offline_run_is_written_over_its_updates(plan, tmp_path):
    config = dataclasses.replace(plan.config, env=EnvConfig(env="none"), train_steps=500)
    report = Report(dataclasses.replace(plan, config=config), RunFolder(tmp_path), {})
    written = []
    report.sinks = types.SimpleNamespace(
        write=lambda step, values: written.append(step), close=lambda: None
    )
    losses = {"loss{name=total}": 0.5, "loss{name=reward}": 0.25}
    report.update(counts(0, train_steps=120), losses)
    report.record()
    assert written == [120]
    assert report.line() == "updates 120/500 | 0 upd/s | losses total 0.5, reward 0.25"
    assert (report.view().progress, report.view().phase) == (0.24, "training")


def test_what_binds_is_said_once_and_when_it_changes(plan, tmp_path, caplog, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("worldloom_dist.run.report.time.monotonic", lambda: now[0])
    report = Report(plan, RunFolder(tmp_path), {})
    spent = {"learner_seconds_total{phase=forward_backward}": 0.0}
    waited = "learner_seconds_total{phase=wait_data}"
    with caplog.at_level(logging.INFO):
        for minute in range(12):
            now[0] += 61.0
            if minute > 1:  # nothing is known before, and nothing is said
                spent = {**spent, waited: spent.get(waited, 0.0) + (60.0 if minute > 7 else 0.0)}
                spent["learner_seconds_total{phase=forward_backward}"] += 60.0
            refused = {"sample": 60.0 * minute}
            report.update(counts(blocked_s=refused), {**spent, "actor_seconds_total{state=env}": 9})
    said = [text for text in caplog.messages if "-bound at" in text]
    assert len(said) == 2, said
    assert said[0].startswith("learner-bound")
    assert said[1].startswith("envs-bound")
