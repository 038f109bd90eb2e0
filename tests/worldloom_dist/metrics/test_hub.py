"""The hub adds up, forgets nothing, and speaks Prometheus."""

import math
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from worldloom.algorithms.dreamerv3 import spec as dreamerv3
from worldloom.algorithms.tdmpc2 import spec as tdmpc2
from worldloom.core.metrics import Histogram, Last, Sum
from worldloom_dist.metrics import hub as hub_module
from worldloom_dist.metrics.endpoint import serve
from worldloom_dist.metrics.evaluation import eval_metrics
from worldloom_dist.metrics.hub import MetricsHub
from worldloom_dist.metrics.names import (
    METRICS,
    ZEROS,
    key_of,
    path_of,
    scalar_keys,
    split_key,
    to_markdown,
)


def filled() -> MetricsHub:
    hub = MetricsHub("r1", {"env": "toy:point"})
    hub.emit("learner", 0, {"learner_updates_total": Sum(2), "loss{name=total}": Last(3.0)})
    hub.emit("learner", 0, {"learner_updates_total": Sum(3), "loss{name=total}": Last(1.5)})
    for worker, length in ((0, 10), (1, 30)):
        episode = {"return": -float(length), "length": length, "reason": "truncated"}
        hub.emit("actor", worker, {"agent_steps_total": Sum(length)}, {"episodes": [episode]})
    hub.emit("learner", 0, {"sample_age_seconds": Histogram.of((1.0, 5.0), 0.5, 3.0)})
    hub.emit("learner", 0, {"sample_age_seconds": Histogram.of((1.0, 5.0), 30.0)})
    return hub


def test_increments_add_up_over_flushes_and_workers():
    snapshot = filled().snapshot()
    assert snapshot["learner_updates_total"] == 5
    assert snapshot["agent_steps_total"] == 40
    assert snapshot["loss{name=total}"] == 1.5
    assert snapshot["episode_return_mean{split=train}"] == -20
    assert snapshot["sample_age_seconds"] == 33.5 / 3
    assert snapshot["sample_age_seconds:p99"] == 5.0


def test_returns_of_several_tasks_are_told_apart():
    hub = MetricsHub("r1")
    for number in range(30):
        task = "fast" if number % 3 else "slow"
        fact = {"return": float(number), "length": 5, "reason": "truncated", "task": task}
        hub.emit("actor", number % 2, {}, {"episodes": [fact]})
    snapshot = hub.snapshot()
    assert snapshot["task_return_mean{split=train,task=slow}"] == sum(range(0, 30, 3)) / 10
    fast = [number for number in range(30) if number % 3]
    assert snapshot["task_return_mean{split=train,task=fast}"] == sum(fast) / 20
    assert snapshot["task_episodes_total{task=slow}"] == 10
    assert snapshot["episode_return_mean{split=train}"] == sum(range(10, 30)) / 20
    assert not [key for key in filled().snapshot() if "task" in key]


def test_an_evaluation_of_several_tasks_has_a_gauge_of_each():
    tasks = {"a": {"return_mean": 3.0, "score": 30.0}, "b": {"return_mean": 5.0}}
    found = eval_metrics({"return_mean": 4.0, "tasks": tasks})
    assert found["task_return_mean{split=eval,task=a}"] == Last(3.0)
    assert found["task_return_mean{split=eval,task=b}"] == Last(5.0)
    assert found["task_score{task=a}"] == Last(30.0)
    assert "eval_score" not in found
    assert eval_metrics({"return_mean": 4.0, "score": 12.0})["eval_score"] == Last(12.0)


def test_a_scrape_parses_and_carries_run_id_and_role():
    hub = filled()
    server, port = serve(hub, "127.0.0.1", 0)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    finally:
        server.shutdown()
        server.server_close()
    samples = {
        (s.name, s.labels.get("role"), s.labels.get("le")): s
        for f in text_string_to_metric_families(text)
        for s in f.samples
    }
    assert samples["worldloom_learner_updates_total", "learner", None].value == 5
    assert samples["worldloom_sample_age_seconds_bucket", "learner", "5.0"].value == 2
    assert samples["worldloom_sample_age_seconds_count", "learner", None].value == 3
    assert samples["worldloom_heartbeat_timestamp_seconds", "actor", None].value > 0
    assert all(s.labels["run_id"] == "r1" for s in samples.values())


def test_the_number_of_series_does_not_depend_on_the_number_of_workers():
    def series(workers: int) -> int:
        hub = MetricsHub("r1")
        for worker in range(workers):
            hub.emit(
                "actor",
                worker,
                {"agent_steps_total": Sum(1), "process_resident_memory_bytes": Last(7.0)},
            )
        return sum(len(family.samples) for family in hub.collect())

    assert series(2) == series(64)


def test_gauges_of_instances_are_combined_as_the_table_says():
    now = [1000.0]
    hub = MetricsHub("r1", clock=lambda: now[0])
    for worker, version in ((0, 9.0), (1, 4.0)):
        hub.emit(
            "actor",
            worker,
            {"process_resident_memory_bytes": Last(100.0), "policy_version": Last(version, worker)},
        )
    assert hub.snapshot()["process_resident_memory_bytes"] == 200.0
    assert hub.snapshot()["policy_version"] == 4.0, "the oldest weights in use"
    now[0] += 2 * hub_module.SUMMED_FOR_S
    hub.emit("actor", 0, {})
    assert hub.snapshot()["process_resident_memory_bytes"] == 100.0, (
        "a worker that is gone holds no memory"
    )


def test_a_version_never_falls_whoever_reports_last():
    """Workers and inference servers report in any order, and late over a slow network; one that has
    just started has older weights than those that act.
    """
    hub = MetricsHub("r1")
    seen = []
    for role, index, version in (
        ("inference", 0, 154),
        ("actor", 0, 153),
        ("inference", 0, 155),
        ("actor", 0, 155),
        ("actor", 1, 0),  # a worker that joins
        ("actor", 1, 156),
        ("actor", 0, 156),
        ("learner", 0, 157),
        ("inference", 0, 157),
    ):
        hub.emit(role, index, {"policy_version": Last(float(version))})
        seen.append(hub.snapshot()["policy_version"])
    assert seen == sorted(seen)
    assert seen[-1] == 156, "the oldest weights in use, of all roles"


def test_the_oldest_version_is_that_of_the_living():
    now = [1000.0]
    hub = MetricsHub("r1", clock=lambda: now[0])
    for worker in (0, 1):
        hub.emit("actor", worker, {"policy_version": Last(4.0)})
    now[0] += 2 * hub_module.SUMMED_FOR_S
    hub.emit("actor", 0, {"policy_version": Last(9.0)})
    assert hub.snapshot()["policy_version"] == 9.0


def test_memory_of_the_run_is_that_of_all_roles():
    hub = MetricsHub("r1")
    for role in ("actor", "learner"):
        hub.emit(role, 0, {"process_resident_memory_bytes": Last(100.0)})
    assert hub.snapshot()["process_resident_memory_bytes"] == 200.0


def test_counters_exist_before_anything_happens_and_empty_histograms_say_nothing():
    hub = MetricsHub("r1")
    hub.emit("replay", 0, {"policy_lag_updates": Histogram.of((1.0, 2.0))})
    names = {(s.name, s.labels.get("reason")) for family in hub.collect() for s in family.samples}
    assert ("worldloom_env_errors_total", "hung") in names
    assert hub.snapshot()["learner_updates_total"] == 0.0
    assert "policy_lag_updates" not in hub.snapshot()
    for keys in ZEROS.values():
        assert {split_key(key)[0] for key in keys} <= {
            name for name, info in METRICS.items() if info.kind == "counter"
        }


@pytest.mark.parametrize(
    ("scalar", "key"),
    [
        ("loss/total", "loss{name=total}"),
        ("reward_loss", "loss{name=reward}"),
        ("grad_norm", "grad_norm{name=all}"),
        ("pi_grad_norm", "grad_norm{name=pi}"),
        ("ent/action", "policy_entropy_nats{name=action}"),
        ("rand/action", "model_stat{name=rand/action}"),
        ("val", "value_mean"),
        ("pi_scale", "return_scale"),
    ],
)
def test_scalars_of_both_algorithms_share_names(scalar, key):
    own = {**dreamerv3.METRIC_KEYS, **tdmpc2.METRIC_KEYS}
    assert scalar_keys(scalar, own) == (key,)
    assert scalar_keys(scalar, {}) == (
        (key,) if scalar not in own else (f"model_stat{{name={scalar}}}",)
    )
    assert split_key(key)[0] in METRICS


def test_a_key_of_its_own_stands_beside_that_of_a_family():
    keys = scalar_keys("loss/dyn", dreamerv3.METRIC_KEYS)
    assert keys == ("loss{name=dyn}", "model_kl_nats")
    assert scalar_keys("loss/dyn", tdmpc2.METRIC_KEYS) == ("loss{name=dyn}",)


def test_a_name_with_labels_is_a_path_for_tools_without_labels():
    assert path_of("loss{name=total}") == "loss/total"
    assert path_of("replay_op_seconds{op=insert}:p99") == "replay_op_seconds/insert/p99"


def test_a_metric_outside_the_table_is_dropped_with_one_warning(caplog):
    hub = MetricsHub("r1")
    for _ in range(3):
        hub.emit("learner", 0, {"made_up": Sum(1)})
    assert "made_up" not in hub.snapshot()
    assert caplog.text.count("made_up") == 1


def test_the_table_follows_the_naming_rules():
    for name, info in METRICS.items():
        assert (info.kind == "counter") == name.endswith("_total"), name
        assert info.help.endswith("."), name
    assert split_key("loss{name=total,kind=a}") == ("loss", {"name": "total", "kind": "a"})
    assert math.isnan(Histogram.of((1.0,)).value)


def test_the_page_of_metrics_is_current():
    page = Path(__file__).parents[3] / "docs" / "metrics.md"
    assert page.read_text() == to_markdown(), (
        "run: python -m worldloom_dist.metrics.names > docs/metrics.md"
    )


def test_of_two_reports_the_later_one_counts_whatever_the_clocks_of_their_machines_say():
    hub = MetricsHub("r1")
    hub.emit("learner", 0, {"replay_ratio_actual": Last(1.0, 9e9)})
    hub.emit("learner", 0, {"replay_ratio_actual": Last(2.0, 5.0)})
    hub.emit("learner", 1, {"replay_ratio_actual": Last(3.0, 1.0)})
    assert hub.snapshot()["replay_ratio_actual"] == 3.0


def test_a_worker_that_is_gone_for_good_does_not_hold_the_heartbeat_back(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(hub_module.time, "time", lambda: 5_000.0 + now[0])
    hub = MetricsHub("r1", {}, clock=lambda: now[0])
    for worker in (0, 1):
        hub.emit("actor", worker, {})

    def heartbeat():
        (family,) = (f for f in hub.collect() if f.name == "worldloom_heartbeat_timestamp_seconds")
        return family.samples[0].value

    now[0] += 60.0
    hub.emit("actor", 0, {})
    assert heartbeat() == 6000.0, "worker 1 may be coming back"
    now[0] += hub_module.GONE_AFTER_S
    hub.emit("actor", 0, {})
    assert heartbeat() == 5000.0 + now[0], "worker 1 is not"


def episode(value: float, length: int = 10) -> dict[str, object]:
    return {"return": value, "length": length, "reason": "truncated"}


def test_recent_episodes_are_the_runs_whichever_roles_play_them():
    hub = MetricsHub("r1")
    hub.emit("actor", 0, {}, {"episodes": [episode(-10.0)]})
    hub.emit("gateway", 0, {}, {"episodes": [episode(5.0, 99)]})
    for _ in range(hub_module.RECENT_EPISODES):
        hub.emit("actor", 0, {}, {"episodes": [episode(100.0)]})
    snapshot = hub.snapshot()
    for name in ("return_mean", "return_min", "return_max"):
        assert snapshot[f"episode_{name}{{split=train}}"] == 100.0, name
    assert snapshot["episode_length_steps_mean{split=train}"] == 10.0
    assert snapshot["episodes_total{reason=truncated}"] == 22
    (family,) = (f for f in hub.collect() if f.name == "worldloom_episode_return_mean")
    assert [s.value for s in family.samples] == [100.0], "one series of the run"


def test_gauges_of_roles_are_combined_as_the_table_says():
    now = [1000.0]
    hub = MetricsHub("r1", clock=lambda: now[0])
    for role, index, size, version in (
        ("actor", 0, 2_000.0, 4.0),
        ("actor", 1, 500.0, 5.0),
        ("learner", 0, 300.0, 91.0),
        ("gateway", 0, 60.0, 90.0),
    ):
        values = {
            "process_resident_memory_bytes": Last(size),
            "process_open_fds": Last(size / 10),
            "policy_version": Last(version),
            "workers": Last(size),
        }
        hub.emit(role, index, values)
    snapshot = hub.snapshot()
    assert snapshot["process_resident_memory_bytes"] == 2_860.0
    assert snapshot["process_open_fds"] == 286.0
    assert snapshot["policy_version"] == 4.0, "the oldest weights in use"
    assert snapshot["workers"] == 60.0, "of what one role alone knows the newest report counts"
    now[0] += 2 * hub_module.SUMMED_FOR_S
    for role in ("learner", "gateway"):
        hub.emit(role, 0, {})
    assert hub.snapshot()["policy_version"] == 90.0, "workers that are gone use no weights"
    assert hub.snapshot()["process_resident_memory_bytes"] == 360.0


NAMES = (
    "obs/lidar,front",
    "obs/cam:0",
    "a=b",
    "{x}",
    'say "x"',
    "back\\slash",
    "",
    "two\nlines",
    "é",
)


@pytest.mark.parametrize("text", [*NAMES, "plain/name"])
def test_labels_hold_any_text_and_come_back(text):
    key = key_of("model_stat", name=text, kind="b,}")
    assert split_key(key) == ("model_stat", {"name": text, "kind": "b,}"})
    assert split_key(f"{key}:p99") == ("model_stat", {"name": text, "kind": "b,}"})
    assert path_of(key) == f"model_stat/{text}/b,}}"
    assert path_of(f"{key}:p99") == f"model_stat/{text}/b,}}/p99"
    assert "\n" not in key


def test_keys_of_earlier_records_are_read_as_they_are():
    assert key_of("loss", name="obs/cam:0") == "loss{name=obs/cam:0}", "as runs have them"
    assert path_of("loss{name=obs/cam:0}") == "loss/obs/cam:0"
    assert split_key("replay_op_seconds:p99") == ("replay_op_seconds", {})


@pytest.mark.parametrize("text", NAMES)
def test_a_loss_of_an_observation_of_any_name_reaches_hub_and_prometheus(text):
    (key,) = scalar_keys(f"loss/{text}" if text else "_loss", {})
    hub = MetricsHub("r1")
    hub.emit("learner", 0, {key: Last(2.0), "learner_updates_total": Sum(1)})
    assert hub.snapshot()[key] == 2.0
    (family,) = (f for f in hub.collect() if f.name == "worldloom_loss")
    assert [s.labels["name"] for s in family.samples] == [text]


def test_a_key_that_cannot_be_read_costs_no_other(caplog):
    hub = MetricsHub("r1")
    for _ in range(2):
        hub.emit("learner", 0, {"loss{name=a,b}": Last(1.0), "learner_updates_total": Sum(1)})
    assert hub.snapshot()["learner_updates_total"] == 2.0
    assert caplog.text.count("loss{name=a,b}") == 1
