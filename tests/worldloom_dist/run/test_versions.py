"""A run remembers the commit of the folder in which it was started."""

import subprocess

import pytest

from tests.worldloom_dist.small_runs import start
from worldloom_dist.run import versions as versions_module
from worldloom_dist.run.versions import COMMIT_VARIABLE, commit_of, git_commit, versions


def git(folder, *words):
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=30,
    )


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "tag", "v1.0")
    return tmp_path


def test_the_commit_is_told_and_whether_files_have_changed_since(repository):
    clean = git_commit(repository)
    assert len(clean) == 12
    (repository / "untracked.txt").write_text("x")
    assert git_commit(repository) == clean
    (repository / "a.py").write_text("2\n")
    assert git_commit(repository) == f"{clean}-dirty"
    (repository / "versions.txt").write_text(versions(repository))
    assert commit_of(repository) == f"{clean}-dirty"


def test_where_there_is_none_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    assert git_commit(tmp_path) == ""
    assert "commit" not in versions(tmp_path)
    assert commit_of(tmp_path) == ""
    assert git_commit(tmp_path / "nowhere") == ""
    git(tmp_path, "init", "-q")
    assert git_commit(tmp_path) == "", "a repository without a commit"


def test_a_git_that_is_missing_or_hangs_costs_nothing_but_the_line(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository / "nothing"))
    assert git_commit(repository) == ""

    def hang(*_, **options):
        raise subprocess.TimeoutExpired("git", options["timeout"])

    monkeypatch.setattr(versions_module.subprocess, "run", hang)
    assert git_commit(repository) == ""


def test_the_variable_names_it_where_files_came_without_their_repository(tmp_path, monkeypatch):
    monkeypatch.setenv(COMMIT_VARIABLE, "0123456789ab-dirty")
    assert git_commit(tmp_path) == "0123456789ab-dirty"
    monkeypatch.setenv(COMMIT_VARIABLE, "some\nlines")
    assert git_commit(tmp_path) == ""


def test_the_labels_of_a_run_say_env_agent_preset_and_seed(tmp_path):
    words = ["--env", "toy:counting", "--env-steps", "60", "--seed", "7"]
    run = start(tmp_path / "run", *words)
    (family,) = (f for f in run.runtime.hub.collect() if f.name == "worldloom_run_info")
    run.runtime.close()
    run.report.close()
    (sample,) = family.samples
    labels = {key: sample.labels[key] for key in ("env", "agent", "preset", "seed")}
    assert labels == {
        "env": "toy:counting",
        "agent": "tdmpc2:ci",
        "preset": "debug",
        "seed": "7",
    }
