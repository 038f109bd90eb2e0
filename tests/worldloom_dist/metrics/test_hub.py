"""The hub adds up, forgets nothing, and speaks Prometheus."""

import math
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from worldloom.core.metrics import Histogram, Last, Sum
from worldloom_dist.metric_names import METRICS, split_key, to_markdown
from worldloom_dist.metrics.hub import MetricsHub, serve


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


def test_a_scrape_parses_and_carries_run_id_and_role():
    hub = filled()
    server, port = serve(hub, "127.0.0.1", 0)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    finally:
        server.shutdown()
        server.server_close()
    samples = {
        (s.name, s.labels.get("role"), s.labels.get("le")): s for f in text_string_to_metric_families(text) for s in f.samples
    }
    assert samples["worldloom_learner_updates_total", "learner", None].value == 5
    assert samples["worldloom_sample_age_seconds_bucket", "learner", "5.0"].value == 2
    assert samples["worldloom_sample_age_seconds_count", "learner", None].value == 3
    assert samples["worldloom_heartbeat_timestamp_seconds", "actor", None].value > 0
    assert all(s.labels["run_id"] == "r1" for s in samples.values())


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
    assert page.read_text() == to_markdown(), "run: python -m worldloom_dist.metric_names > docs/metrics.md"
