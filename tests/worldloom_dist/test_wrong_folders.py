"""Every command, against every folder that is no run, or one that is damaged: status 2, one
sentence, and nothing is changed.
"""

import json
import shutil

import pytest
import torch

from tests.worldloom_dist.small_runs import start
from worldloom_dist import evaluate, launch, plot, status
from worldloom_dist.replay import __main__ as replay

COMMANDS = {
    "evaluate": lambda folder: evaluate.main([folder, "--episodes", "1"]),
    "plot": lambda folder: plot.main([folder, "-o", "never.png"]),
    "status": lambda folder: status.main([folder]),
    "status --json": lambda folder: status.main(["--json", folder]),
    "resume": lambda folder: launch.main(["--resume", folder, "--env-steps", "90"]),
    "export": lambda folder: replay.main(["export", folder, "never.npz"]),
    "import": lambda folder: replay.main(["import", folder, "no-such-file.npz"]),
    "verify": lambda folder: replay.main(["verify", folder]),
}
NO_RUN = ["missing", "empty", "file", "file/x"]
DAMAGED = ["cut short", "no object", "no text", "a folder"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    before = torch.get_num_threads()
    assert start(folder, "--env-steps", "60").run() == "completed"
    torch.set_num_threads(before)
    return folder


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def contents(folder) -> dict:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def damage(path, how) -> None:
    text = path.read_text()
    path.unlink()
    if how == "a folder":
        path.mkdir()
    else:
        path.write_bytes(
            {"cut short": text[:90].encode(), "no object": b"[1]", "no text": b"\xff\xfe\x00"}[how]
        )


def check_refused(command, folder, capsys, tmp_path) -> None:
    before = contents(tmp_path)
    assert COMMANDS[command](str(folder)) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert str(folder) in shown.err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("folder", NO_RUN)
def test_folder_that_holds_no_run_is_wrong_input(command, folder, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("hi")
    check_refused(command, folder, capsys, tmp_path)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "verify"])
@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_config_is_wrong_input(command, how, capsys, tmp_path, made):
    folder = shutil.copytree(made, tmp_path / "run")
    damage(folder / "config.json", how)
    check_refused(command, folder, capsys, tmp_path)


@pytest.mark.parametrize("command", ["status", "resume"])
@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_summary_is_wrong_input(command, how, capsys, tmp_path, made):
    folder = shutil.copytree(made, tmp_path / "run")
    damage(folder / "summary.json", how)
    check_refused(command, folder, capsys, tmp_path)


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("summary.json", ("status",)),
        ("summary.json", ("env_steps",)),
        ("summary.json", ("train_return_mean",)),
        ("summary.json", ("eval",)),
        ("summary.json", ("eval", "return_mean")),
        ("summary.json", ("wall_time_s",)),
        ("summary.json", ("rows", "stored")),
        ("summary.json", ("restarts",)),
        ("summary.json", ("staleness", "mean")),
        ("config.json", ("run", "env_steps")),
        ("config.json", ("run", "replay", "capacity_steps")),
    ],
)
def test_status_refuses_values_of_another_type(file, names, capsys, tmp_path, made):
    folder = shutil.copytree(made, tmp_path / "run")
    found = json.loads((folder / file).read_text())
    found["eval"] = {"return_mean": 1.0, "return_std": 0.0, "env_steps": 60}
    at = found
    for name in names[:-1]:
        at = at[name]
    at[names[-1]] = ["x"]
    (folder / file).write_text(json.dumps(found))
    check_refused("status", folder, capsys, tmp_path)


@pytest.mark.parametrize("run", [[], {}, {"agent": "a", "env": []}])
def test_plot_refuses_a_config_that_says_nothing_of_the_run(run, capsys, tmp_path, made):
    folder = shutil.copytree(made, tmp_path / "run")
    (folder / "config.json").write_text(json.dumps({"run": run}))
    check_refused("plot", folder, capsys, tmp_path)


@pytest.mark.parametrize("name", ["imports.json", "incarnations.json", "replay/books.json"])
def test_resume_refuses_what_it_could_not_read_later(name, capsys, tmp_path, made):
    folder = shutil.copytree(made, tmp_path / "run")
    (folder / name).write_text("{")
    check_refused("resume", folder, capsys, tmp_path)


def test_records_that_are_none_are_passed_over(capsys, tmp_path, made):
    folder = shutil.copytree(made, tmp_path / "run")
    lines = [
        "[1]",
        "xx",
        '{"kind": "train"}',
        '{"kind": "eval", "env_steps": 1, "return_mean": null}',
        '{"kind": "ev',
    ]
    records = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(records + "\n".join(lines))
    assert plot.main([str(folder), "-o", "plot.png"]) == 0
    assert status.main([str(folder)]) == 0
    assert (tmp_path / "plot.png").exists()
    capsys.readouterr()
    assert status.main(["--json", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "completed"
