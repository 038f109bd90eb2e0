"""Prometheus and Grafana: files are valid, alerts fire when they should, and every expression finds
data of a live run.
"""

import contextlib
import json
import re
import runpy
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.integration.running import launched
from tests.ports import free_port
from worldloom_client import connect
from worldloom_dist.metrics.names import METRICS

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
BOARD = json.loads((GRAFANA / "dashboards" / "worldloom.json").read_text())
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "board_picture.py"))
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "rules" / "worldloom.yml").read_text())["groups"]
    for rule in group["rules"]
]
QUESTIONS = [
    "Is it learning",
    "Which task",
    "Throughput",
    "Where does it wait",
    "Freshness",
    "Replay",
    "Model health",
    "Model on evaluation episodes",
    "Resources",
    "Clients from outside",
    "Faults",
]

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"),
    reason="promtool is not installed (Debian: apt install prometheus)",
)


def promtool(*words: str) -> str:
    done = subprocess.run(
        ["promtool", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expressions() -> list[tuple[str, str]]:
    return [
        (panel["title"], target["expr"])
        for _, panels in SCRIPT["rows"](BOARD)
        for panel in panels
        for target in panel["targets"]
    ]


@needs_promtool
def test_prometheus_accepts_the_configuration_and_the_rules():
    assert "19 rules found" in promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert len([rule for rule in RULES if "alert" in rule]) == 10


@needs_promtool
def test_every_alert_fires_for_a_sick_run_and_is_silent_for_a_healthy_one():
    promtool("test", "rules", str(PROMETHEUS / "rules_test.yml"))
    tested = re.findall(
        r"alertname: (\w+)\n\s+exp_alerts", (PROMETHEUS / "rules_test.yml").read_text()
    )
    assert sorted(tested) == sorted(rule["alert"] for rule in RULES if "alert" in rule)


def test_the_board_is_what_its_script_writes_and_answers_the_ten_questions():
    assert (
        json.loads(json.dumps(runpy.run_path(str(GRAFANA / "make_board.py"))["board"]())) == BOARD
    )
    assert [title for title, _ in SCRIPT["rows"](BOARD)] == QUESTIONS
    assert all("$run_id" in expr for _, expr in expressions())
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (p["gridPos"]["x"] + dx, p["gridPos"]["y"] + dy)
        for p in BOARD["panels"]
        for dx in range(p["gridPos"]["w"])
        for dy in range(p["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "panels overlap"


def test_every_name_on_the_board_and_in_the_rules_is_in_the_table_of_metrics():
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for expr in [expr for _, expr in expressions()] + [rule["expr"] for rule in RULES]:
        names = re.findall(r"worldloom[:_][\w:]+", expr)
        assert names
        for name in names:
            short = re.sub(r"_(bucket|sum|count)$", "", name.removeprefix("worldloom_"))
            assert name in recorded or short in METRICS, f"{name} in {expr}"


def test_grafana_finds_the_data_source_and_the_board():
    source = yaml.safe_load(
        (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text()
    )["datasources"][0]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    provider = yaml.safe_load(
        (GRAFANA / "provisioning" / "dashboards" / "worldloom.yml").read_text()
    )["providers"][0]
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"][
        "volumes"
    ]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts


@contextlib.contextmanager
def prometheus(folder: Path, target: int):
    """A real Prometheus with the files of the repository, only in more of a hurry; yields its
    address.
    """
    shutil.copytree(PROMETHEUS, folder)
    config = folder / "prometheus.yml"
    config.write_text(
        config.read_text()
        .replace("scrape_interval: 10s", "scrape_interval: 1s")
        .replace("15s", "2s")
    )
    (folder / "targets" / "local.yml").write_text(
        json.dumps([{"targets": [f"127.0.0.1:{target}"]}])
    )
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--log.level=warn",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def empty(url: str, questions: dict[str, str]) -> list[str]:
    """Questions that Prometheus cannot answer with data now."""
    unanswered = []
    for name, query in questions.items():
        with contextlib.suppress(urllib.error.URLError):
            if ask_values(url, query):
                continue
        unanswered.append(f"{name}: {query}")
    return unanswered


def ask_values(url: str, query: str) -> list[float]:
    """Finite values of an instant query; a query that does not parse fails the test."""
    found = SCRIPT["ask"](url, "query", query=query)["result"]
    return [
        float(series["value"][1])
        for series in found
        if float(series["value"][1]) == float(series["value"][1])
    ]


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.skipif(
    not shutil.which("prometheus"),
    reason="prometheus is not installed (Debian: apt install prometheus)",
)
def test_every_expression_of_the_board_and_of_the_rules_finds_data_of_a_live_run(tmp_path):
    folder = tmp_path / "run"
    port = free_port()
    words = [
        "--preset",
        "debug",
        "--workers",
        "2",
        "--env-steps",
        "1000000",
        "--eval-every",
        "300",
        "--eval-episodes",
        "1",
        "--gateway-port",
        str(gateway := free_port()),
    ]
    with (
        launched(folder, *words, "--run-dir", str(folder), "--metrics-port", str(port)) as run,
        prometheus(tmp_path / "prometheus", port) as url,
    ):
        run.wait_until(lambda: run.summary().get("eval"), 150)
        run_id = json.loads((folder / "config.json").read_text())["run_id"]
        questions = {
            f"panel {title} {i}": SCRIPT["substitute"](e, run_id)
            for i, (title, e) in enumerate(expressions())
        }
        questions |= {
            f"record {rule['record']}": rule["record"] for rule in RULES if "record" in rule
        }
        deadline = time.monotonic() + 90
        unanswered = ["all"]
        with connect(f"127.0.0.1:{gateway}") as session:
            obs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in session.obs_specs}
            while unanswered and time.monotonic() < deadline:
                for _ in range(20):
                    session.act(obs)
                time.sleep(2)
                unanswered = empty(url, questions)
        assert unanswered == []
        health = {
            r["name"]: (r["health"], r.get("lastError"))
            for g in SCRIPT["ask"](url, "rules")["groups"]
            for r in g["rules"]
        }
        assert set(health.values()) == {("ok", None)}, health
        assert len(health) == 18
        for rule in RULES:
            if "alert" in rule:
                measured = re.findall(r"worldloom:[\w:]+", rule["expr"])
                assert measured, (
                    f"{rule['alert']} looks at no record, so no one knows whether it sees anything"
                )
                SCRIPT["ask"](url, "query", query=rule["expr"])
        assert len(questions) > 60
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0, run.output.read_text()
