"""A worker whose env holds too much memory is replaced, and the run goes on and says why."""

import pytest

from tests.integration.running import PATIENCE, launched

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,
    pytest.mark.long,
    pytest.mark.timeout(400 * PATIENCE),
]


@pytest.mark.parametrize(
    ("envs_per_worker", "limit_gb", "who"),
    [("1", "0.2", "worker-"), ("2", "0.3", "was ended for its memory")],
    ids=["in the worker", "in a process of its own"],
)
def test_an_env_that_holds_too_much_costs_itself_only(tmp_path, envs_per_worker, limit_gb, who):
    folder = tmp_path / "run"
    words = [
        *("--preset", "debug", "--env", "tests.worldloom.envs.faulty_envs:hoards_memory"),
        *("--workers", "1", "--envs-per-worker", envs_per_worker, "--inference", "central"),
        *("--actors.env-memory-gb", limit_gb, "--eval-episodes", "0", "--metrics-port", "0"),
        *("--run-dir", str(folder), "--env-steps", "600"),
    ]
    has_happened = tmp_path / "happened"
    has_happened.touch()  # the driver tries the env out
    with launched(folder, *words, env={"FAULTY_DIR": str(tmp_path)}) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 0, 200)
        has_happened.unlink()
        assert run.finish(200) == 0
        summary = run.summary()
        assert not run.leftovers()
    assert summary["status"] == "completed"
    assert summary["restarts"]["env"] == 1
    assert summary["restarts"]["worker"] == (envs_per_worker == "1")
    log = (folder / "console.log").read_text()
    assert "that --actors.env-memory-gb allows" in log
    assert who in log
    assert "Traceback" not in log
    assert '"env_errors_total{reason=memory}": 1' in (folder / "metrics.jsonl").read_text()
