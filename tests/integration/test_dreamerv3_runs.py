"""DreamerV3 through Ray from the command line, on every kind of env it is documented for: rows in,
updates made, pictures out.
"""

import json

import pytest

from tests.integration.running import launched

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
PACKAGES = {"atari": "ale_py", "dmc": "dm_control"}
"""Suite -> package; its extra has the name of the suite."""

SMALL = (
    "--preset quick --workers 2 --eval-every 0 --eval-episodes 0 --metrics-port 0 "
    "--agent.batch-size 2 --agent.batch-length 8 "
    "--train-ratio 4 --learner.threads 1 --learner.report-every-steps 100"
)

PREFILL = 24
BATCH_POSITIONS = 2 * 8
CHUNK_ROWS = 64
BAND_POSITIONS = 2 * (BATCH_POSITIONS + 4 * CHUNK_ROWS)
"""What training may be off by when the run ends, with the default band."""


def run_once(folder, words: str) -> dict:
    """Run to the end; returns the summary, after a look at what every such run must have done."""
    with launched(folder, *SMALL.split(), *words.split(), "--run-dir", str(folder)) as run:
        assert run.finish(380) == 0, run.output.read_text()
        summary = run.summary()
        text = run.output.read_text()
        assert run.leftovers() == []
    assert summary["status"] == "completed"
    assert sum(summary["restarts"].values()) == 0, text
    assert summary["train_steps"] > 0
    assert (folder / "nonfinite").exists() is False
    assert "report at" not in text or "left out" in text, text
    return summary


def pictures(folder) -> set[str]:
    """Keys that were drawn."""
    lines = [
        json.loads(line) for line in (folder / "videos" / "index.jsonl").read_text().splitlines()
    ]
    assert all((folder / "videos" / line["path"]).stat().st_size for line in lines)
    return {f"{line['name']}{line['path'][-4:]}" for line in lines}


@pytest.mark.long
def test_pixels_are_learnt_from_and_drawn_and_their_latents_refreshed(tmp_path):
    summary = run_once(tmp_path / "run", "--env toy:pixel --agent dreamerv3:ci --env-steps 200")
    owed = 4 * (summary["agent_steps"] - PREFILL)
    assert abs(summary["replayed_steps"] - owed) <= BAND_POSITIONS, summary
    assert pictures(tmp_path / "run") == {"open_loop/obs.gif"}
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["replay_refreshed_steps_total{outcome=applied}"] > 0


@pytest.mark.long
def test_without_a_decoder_pixels_are_learnt_from_and_nothing_is_drawn(tmp_path):
    run_once(tmp_path / "run", "--env toy:pixel --agent r2dreamer:ci --env-steps 200")
    assert not (tmp_path / "run" / "videos" / "index.jsonl").exists()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["replay_refreshed_steps_total{outcome=applied}"] > 0
    assert 0 < last["loss{name=barlow/invariance}"] < 300


@pytest.mark.long
@pytest.mark.parametrize(
    ("env", "agent", "steps", "drawn"),
    [
        ("atari:pong", "dreamerv3:ci", 800, {"open_loop/obs.gif"}),
        ("atari:pong", "dreamerv3:size12m", 240, {"open_loop/obs.gif"}),
        (
            "dmc:walker-walk",
            "dreamerv3:ci",
            300,
            {"open_loop/height.png", "open_loop/orientations.png", "open_loop/velocity.png"},
        ),
        ("gym:CartPole-v1", "dreamerv3:ci", 300, {"open_loop/obs.png"}),
    ],
)
def test_documented_envs_run(tmp_path, env, agent, steps, drawn):
    suite = env.partition(":")[0]
    if suite in PACKAGES:
        pytest.importorskip(PACKAGES[suite], reason=f"needs worldloom-dist[{suite}]")
    run_once(tmp_path / "run", f"--env {env} --agent {agent} --env-steps {steps}")
    assert pictures(tmp_path / "run") == drawn
