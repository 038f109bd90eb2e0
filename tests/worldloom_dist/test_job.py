"""Inside a job: which flags the launch gets, and how its summary gets out."""

import json

import pytest

from worldloom.core.files import write_json
from worldloom_dist.job import job_words, main
from worldloom_dist.runtime.jobs import SUMMARY_MARK


def test_a_job_joins_its_cluster_and_goes_on_with_its_run_when_it_is_tried_again(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("WORLDLOOM_RUNS", str(tmp_path))
    words = job_words(["--workers", "3"], "job-1")
    assert words == [
        "--workers",
        "3",
        "--run-dir",
        f"{tmp_path}/job-1",
        "--if-exists",
        "resume",
        "--address",
        "auto",
    ]


def test_runs_of_jobs_lie_outside_of_what_ray_deletes(monkeypatch, capsys):
    monkeypatch.setenv("WORLDLOOM_RUNS", "runs")
    assert main(["--job-id", "job-1", "--", "--workers", "3"], lambda _: 0) == 2
    assert "WORLDLOOM_RUNS must be an absolute path, got runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["--run-dir=/x"], ["--if-exists", "resume", "--address", "auto"]),
        (["--run_dir", "/x", "--if-exists", "error"], ["--address", "auto"]),
        (["--resume", "/x", "--address", "head:6379"], []),
    ],
)
def test_what_the_user_said_is_left_alone(given, added):
    assert job_words(given, "job-1") == given + added


@pytest.mark.parametrize("named", ["--run-dir", "--run_dir="])
def test_the_summary_is_one_marked_line_and_the_exit_status_is_the_launchs(named, tmp_path, capsys):
    def launch(flags):
        write_json(tmp_path / "summary.json", {"status": "failed"})
        return 1

    flags = [named + str(tmp_path)] if named.endswith("=") else [named, str(tmp_path)]
    assert main(["--job-id", "a", "--", *flags], launch) == 1
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(SUMMARY_MARK)
    ]
    assert json.loads(line.removeprefix(SUMMARY_MARK)) == {
        "run_dir": str(tmp_path),
        "summary": {"status": "failed"},
    }


def test_a_launch_that_wrote_nothing_says_no_summary(tmp_path, capsys):
    assert main(["--job-id", "a", "--", "--run-dir", str(tmp_path)], lambda flags: 2) == 2
    assert SUMMARY_MARK not in capsys.readouterr().out


def test_a_damaged_summary_is_left_to_the_launch_to_refuse(tmp_path, capsys):
    (tmp_path / "summary.json").write_text("{")
    assert main(["--job-id", "a", "--", "--run-dir", str(tmp_path)], lambda flags: 2) == 2
    assert SUMMARY_MARK not in capsys.readouterr().out
