"""What a resumed run may change, what it needs, and that one that is refused or fails changes
nothing in its folder.
"""

import json
import shlex
import shutil
import subprocess
import sys
import urllib.request

import pyarrow
import pytest
import torch
from pyarrow import parquet

from tests.worldloom_dist.local_runs import run_of
from tests.worldloom_dist.small_runs import SMALL, start
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom_dist import launch as module
from worldloom_dist.evaluate import main as evaluate
from worldloom_dist.launch import main as launch
from worldloom_dist.replay.__main__ import main as replay
from worldloom_dist.replay.verify import verify_run
from worldloom_dist.run.folder import RunFolder

TWO = ["--workers", "2"]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two workers that has made its 60 steps; tests copy it."""
    folder = tmp_path_factory.mktemp("made") / "run"
    before = torch.get_num_threads()
    assert start(folder, *TWO, "--env-steps", "60").run() == "completed"
    torch.set_num_threads(before)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def summary_of(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


def contents(folder) -> dict:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_run_that_goes_on_is_checked_before_torch_is_imported(made):
    """That takes seconds, which the run's roles need."""
    code = (
        "import sys\nfrom worldloom_dist.launch import parse, prepare\n"
        "plan, _, is_resumed, _ = prepare(parse(['--resume', sys.argv[1]]))\n"
        "assert is_resumed and plan.env_spec\nassert 'torch' not in sys.modules\n"
    )
    words = [sys.executable, "-c", code, str(made)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def check_rows(folder) -> None:
    assert verify_run(folder).problems == []
    rows = summary_of(folder)["rows"]
    assert rows["inserted"] == rows["stored"]
    assert rows["duplicate"] == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--workers", "1"],
        ["--workers", "3"],
        ["--envs-per-worker", "2"],
        ["--agent.horizon", "2"],
        ["--replay.selector", "prioritised"],
    ],
    ids=" ".join,
)
def test_setting_that_may_change_is_applied_and_kept_and_the_run_goes_on_twice(folder, words):
    assert start(folder, *TWO, "--env-steps", "90", *words).run() == "completed"
    check_rows(folder)
    kept = json.loads((folder / "config.json").read_text())["run"]
    name = words[0].removeprefix("--").replace("-", "_")
    if name in kept:
        assert kept[name] == int(words[1])
    before = summary_of(folder)["rows"]["inserted"]
    assert start(folder, *TWO, "--env-steps", "180").run() == "completed"
    check_rows(folder)
    assert summary_of(folder)["rows"]["inserted"] > before


def test_worker_that_was_left_out_goes_on_with_its_streams_when_it_is_back(folder):
    for workers, steps in (("1", "80"), ("2", "100"), ("1", "120"), ("2", "140")):
        assert start(folder, "--workers", workers, "--env-steps", steps).run() == "completed"
        check_rows(folder)
    assert sorted(p.name for p in (folder / "replay").iterdir()) == ["shard-0"]


def test_other_batch_size_or_ratio_makes_no_surge_of_updates(folder):
    updates = summary_of(folder)["train_steps"]
    run = start(folder, *TWO, "--env-steps", "90", "--train-ratio", "600")
    run.runtime.start()
    limiter = run.runtime.replay.coordinator.limiter
    assert limiter.debt <= limiter.limits.slack_insert
    assert run.runtime.learner.train_steps == updates
    run.runtime.close()


@pytest.mark.parametrize(
    "words",
    [
        ["--learner.checkpoints", "elsewhere"],
        ["--seed", "9"],
        ["--init-from", "another"],
        ["--runtime", "ray"],
        ["--replay.shards", "2"],
        ["--replay.durability", "none"],
        ["--agent.latent-dim", "32"],
        ["--env.time-limit", "7"],
        ["--envs-per-worker", "0"],
        ["--replay.load", "no-such-file.npz"],
        ["--replay.selector", "prioritised:nan"],
        ["--metrics-auth-file", "no-such-file"],
        ["--preset", "quick"],
        ["--preset", "debgu"],
        ["--run-dir", "elsewhere"],
    ],
    ids=" ".join,
)
def test_refused_resume_leaves_the_folder_as_it_was(folder, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = contents(folder)
    assert launch(["--resume", str(folder), "--env-steps", "90", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert contents(folder) == before


def test_run_of_a_preset_that_is_no_more_goes_on(folder, capsys):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"preset": "debug"', '"preset": "older"'))
    assert launch(["--resume", str(folder), "--env-steps", "90", "--metrics-port", "0"]) == 0
    assert "preset   older\n" in capsys.readouterr().out


def test_advice_of_a_stopped_run_works_when_it_is_typed(made, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(made, tmp_path / "my run")
    monkeypatch.setattr(module, "run_plan", lambda *_: "stopped")
    assert launch(["--resume", str(folder), "--metrics-port", "0"]) == 0
    advice = capsys.readouterr().out.splitlines()[-1].partition(" train ")[2]
    assert shlex.split(advice) == ["--resume", str(folder)]


def test_resume_that_fails_before_its_first_step_leaves_the_folder_as_it_was(folder, monkeypatch):
    before = contents(folder)
    run = start(folder, *TWO, "--env-steps", "90", "--seed", "5")

    def fail(*_):
        raise CheckpointError("the state does not fit")

    monkeypatch.setattr(run.runtime.workers, "begin", fail)
    with pytest.raises(CheckpointError, match="does not fit"):
        run.run()
    after = contents(folder)
    assert {name for name in after | before if after.get(name) != before.get(name)} == set()
    assert start(folder, *TWO, "--env-steps", "90").run() == "completed"


def test_checkpoints_that_cannot_be_read_end_a_resume_and_not_the_rows(folder):
    for manifest in folder.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{")
    before = contents(folder)
    with pytest.raises(CheckpointError, match=r"none of the \d checkpoints in .* can be read"):
        start(folder, *TWO, "--env-steps", "90")
    assert contents(folder) == before


def test_counters_in_the_records_go_on(folder):
    assert start(folder, *TWO, "--env-steps", "90").run() == "completed"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [record for record in records if record["kind"] == "train"]
    totals = [key for key in last if "_total" in key]
    assert len(totals) > 20
    assert [key for key in totals if last[key] < first.get(key, 0)] == []
    for key in (
        "actor_seconds_total{state=env}",
        "process_cpu_seconds_total",
        "weights_published_total",
    ):
        assert last[key] > first.get(key, 0), key
    summary = summary_of(folder)
    assert last["env_steps_total"] == last["env_steps"] == summary["env_steps"]
    assert last["learner_updates_total"] == last["train_steps"] == summary["train_steps"]
    assert last["replay_inserted_steps_total"] == summary["rows"]["inserted"]


def test_file_that_is_stored_is_not_needed_again(folder, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    data = tmp_path / "data.npz"
    more = tmp_path / "more.npz"
    assert replay(["export", str(folder), str(data)]) == 0
    words = [*TWO, "--replay.load", str(data)]
    run = tmp_path / "other"
    assert start(run, *words, "--env-steps", "60").run() == "completed"
    inserted = summary_of(run)["rows"]["inserted"]
    data.rename(more)
    assert evaluate([str(run), "--episodes", "1"]) == 0
    assert replay(["import", str(run), str(more)]) == 0
    capsys.readouterr()
    assert launch(["--resume", str(run), "--env-steps", "90", "--metrics-port", "0"]) == 0
    assert f"{data} is gone, and is not needed" in caplog.text
    assert summary_of(run)["rows"]["inserted"] > inserted
    more.unlink()
    assert launch(["--resume", str(run), "--env-steps", "110", "--metrics-port", "0"]) == 0
    assert f"{more} is gone, and is not needed" in caplog.text
    check_rows(run)


def test_a_file_that_is_gone_or_turned_bad_costs_only_itself_and_is_named(
    folder, tmp_path, capsys, caplog
):
    good = tmp_path / "good.npz"
    assert replay(["export", str(folder), str(good)]) == 0
    gone = tmp_path / "gone.npz"
    bad = tmp_path / "bad.parquet"
    shutil.copy(good, gone)
    assert replay(["export", str(folder), str(bad)]) == 0
    for file in (gone, bad, good):
        assert replay(["import", str(folder), str(file)]) == 0
    gone.unlink()
    rewritten = parquet.read_table(bad)  # by a person, with another tool
    columns = {name: rewritten.column(name) for name in rewritten.column_names}
    columns["obs"] = pyarrow.array([1.0] * len(rewritten))
    table = pyarrow.table(columns).replace_schema_metadata(rewritten.schema.metadata)
    parquet.write_table(table, bad)
    assert replay(["import", str(folder), str(bad)]) == 2, "it is looked at as a whole"
    for steps in ("90", "110"):
        assert launch(["--resume", str(folder), "--env-steps", steps, "--metrics-port", "0"]) == 0
        left_out = summary_of(folder)["imports_left_out"]
        assert set(left_out) == {str(gone), str(bad)}
        assert "AttributeError" in left_out[str(bad)]
    check_rows(folder)


def test_metrics_are_served_without_ray_too(tmp_path):
    run = start(tmp_path / "run", "--env-steps", "60")
    server = run_of(run.plan, RunFolder(tmp_path / "other"), 19464)
    run.runtime.close()
    try:
        server.runtime.collect()
        port = server.runtime.endpoint.server_port
        text = (
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        )
    finally:
        server.runtime.close()
        server.report.close()
    assert "worldloom_learner_updates_total" in text


def test_resume_in_an_env_that_has_changed_leaves_the_folder_as_it_was(folder, capsys):
    for manifest in folder.glob("checkpoints/*/manifest.json"):
        found = json.loads(manifest.read_text())
        found["facts"]["env"]["name"] = "toy:counting"
        manifest.write_text(json.dumps(found))
    before = contents(folder)
    assert launch(["--resume", str(folder), "--env-steps", "90", "--metrics-port", "0"]) == 1
    assert (
        "was trained with env 'toy:counting', and this run has 'toy:point'"
        in capsys.readouterr().err
    )
    assert contents(folder) == before


def test_new_run_that_is_refused_late_leaves_no_folder(tmp_path, monkeypatch):
    def refuse(*_):
        raise ConfigurationError("the cluster is too small")

    monkeypatch.setattr(module, "run_plan", refuse)
    assert launch([*SMALL, "--metrics-port", "0", "--run-dir", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


def test_new_run_that_is_told_wrong_leaves_no_folder(tmp_path, capsys):
    assert (
        launch([*SMALL, "--run-dir", str(tmp_path / "run"), "--metrics-auth-file", "no-such-file"])
        == 2
    )
    assert not (tmp_path / "run").exists()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The words of a run whose checkpoints lie outside of its folder, by a path from here."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words = [*SMALL, "--metrics-port", "0", "--env-steps", "60", "--learner.checkpoints", "kept"]
    words += ["--run-dir", str(tmp_path / "run")]
    assert launch(words) == 0
    return words


def test_checkpoints_elsewhere_are_found_from_another_folder(elsewhere, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    kept = json.loads((folder / "config.json").read_text())["run"]["learner"]["checkpoints"]
    assert kept == str(tmp_path / "here/kept")
    assert launch([*elsewhere, "--if-exists", "resume", "--env-steps", "80"]) == 0
    updates = summary_of(folder)["train_steps"]
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert launch(["--resume", str(folder), "--env-steps", "100", "--metrics-port", "0"]) == 0
    assert summary_of(folder)["train_steps"] > updates
    check_rows(folder)


def test_run_whose_checkpoints_elsewhere_are_gone_is_left_as_it_is(elsewhere, tmp_path, capsys):
    folder = tmp_path / "run"
    (tmp_path / "here/kept").rename(tmp_path / "here/moved")
    before = contents(folder)
    assert launch(["--resume", str(folder), "--env-steps", "90"]) == 1
    assert "holds no checkpoint" in capsys.readouterr().err
    assert contents(folder) == before


def test_a_new_run_does_not_begin_with_the_checkpoints_of_another(elsewhere, tmp_path, capsys):
    before = contents(tmp_path / "here")
    assert launch([*elsewhere, "--run-dir", str(tmp_path / "other")]) == 2
    assert "kept holds checkpoints of another run already" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert contents(tmp_path / "here") == before
