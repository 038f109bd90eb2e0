"""The table of runs: every run below a folder is in it, whatever state it is in, and none is
touched.
"""

import csv
import io
import json
import os
import time

import pytest

from tests.worldloom_dist.written_runs import write_run
from worldloom_dist import enjoy, evaluate, plot, report, runs, status
from worldloom_dist.run.listing import find_runs
from worldloom_dist.runs import list_runs, main

DREAMER = {"agent": "dreamerv3:ci", "env": {"env": "gym:CartPole-v1"}, "seed": 2}


@pytest.fixture
def folder(tmp_path):
    done = {"status": "completed"}
    write_run(tmp_path / "runs/a-2", summary=done, level=-100.0)
    write_run(tmp_path / "runs/a-10", summary=done, level=-200.0)
    write_run(tmp_path / "runs/sweep/deep", config=DREAMER, summary={"status": "stopped"})
    (tmp_path / "runs/a-2/versions.txt").write_text("python 3.11\ncommit 0123456789ab-dirty\n")
    return tmp_path / "runs"


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def snapshot(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


def test_the_table_has_every_run_in_the_order_that_people_count_in(folder, capsys):
    before = snapshot(folder)
    assert main([str(folder)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == list(runs.HEADS)
    assert [row.split()[0] for row in rows] == ["a-2", "a-10", "sweep/deep"]
    assert rows[0].split()[1:4] == ["gym:Pendulum-v1", "tdmpc2:ci", "1"]
    assert "0123456789ab-dirty" in rows[0]
    assert rows[2].split()[8] == "stopped"
    assert snapshot(folder) == before


def test_json_and_csv_hold_the_same_fields_under_the_same_names(folder, capsys):
    assert main([str(folder), "--json"]) == 0
    found = lines(capsys)
    assert main([str(folder), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [list(row) for row in rows] == [list(entry) for entry in found]
    assert rows[0]["env_steps"] == str(found[0]["env_steps"]) == "5000"
    assert found[0]["return_best"] == max(
        json.loads(line)["return_mean"]
        for line in (folder / "a-2/metrics.jsonl").read_text().splitlines()
        if '"eval"' in line
    )
    assert found[0]["started"].endswith("+00:00")
    assert found[0]["hours"] == pytest.approx(500 / 3600)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--env", "pendulum"], ["a-2", "a-10"]),
        (["--env", "gym:*-v1"], ["a-2", "a-10", "sweep/deep"]),
        (["--env", "cartpole", "--env", "walker"], ["sweep/deep"]),
        (["--agent", "dreamer", "--seed", "2"], ["sweep/deep"]),
        (["--agent", "dreamer", "--seed", "1"], []),
        (["--status", "stopped", "--status", "failed"], ["sweep/deep"]),
        (["--commit", "0123"], ["a-2"]),
        (["--sort", "return"], ["a-10", "a-2", "sweep/deep"]),
        (["--sort", "return", "--reverse"], ["sweep/deep", "a-2", "a-10"]),
        (["--sort", "commit", "--reverse"], ["a-2", "a-10", "sweep/deep"]),
        (["--since", "2020-01-01"], ["a-2", "a-10", "sweep/deep"]),
        (["--since", "1h"], []),
    ],
)
def test_filters_and_order(folder, capsys, words, names):
    deep = folder / "sweep/deep/metrics.jsonl"
    deep.write_text(deep.read_text().replace('"return_mean": -', '"return_mean": '))
    (folder / "sweep/deep/summary.json").write_text(
        json.dumps(
            {
                **json.loads((folder / "sweep/deep/summary.json").read_text()),
                "eval": {"return_mean": 9.5},
            }
        )
    )
    assert main([str(folder), *words, "--json"]) == 0
    assert [entry["name"] for entry in lines(capsys)] == names


def test_filters_that_nothing_passes_say_what_there_is(folder, capsys):
    assert main([str(folder), "--env", "pendlum"]) == 0
    out, error = capsys.readouterr()
    assert out == ""
    assert "none of 3 runs passes the filters" in error
    assert "gym:CartPole-v1, gym:Pendulum-v1" in error


def test_what_was_written_since_counts_by_the_records(folder, capsys):
    record = {"kind": "train", "time": time.time() - 60, "env_steps": 5000}
    with (folder / "a-2/metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    os.utime(folder / "a-2/metrics.jsonl", (0, 0))
    assert main([str(folder), "--since", "2h", "--json"]) == 0
    assert [entry["name"] for entry in lines(capsys)] == ["a-2"]


DAMAGE = {
    "config.json cannot be read": ("config.json", '{"run": {"age'),
    "there is no config.json": ("config.json", None),
    "config.json has no 'agent'": ("config.json", '{"run": {"env": {"env": "toy:point"}}}'),
    "another kind than a run writes": ("config.json", '{"run": {"env": "toy:point"}}'),
    "summary.json cannot be read": ("summary.json", "{"),
    "env_steps must be an integer": ("summary.json", '{"env_steps": "many"}'),
    "nested too deeply": ("summary.json", '{"a":' * 100_000),
    "holds a list, not a JSON object": ("config.json", "[]"),
    "config.json: agent must be a text": (
        "config.json",
        '{"run": {"env": {"env": "toy:point"}, "agent": 3, "seed": 1}}',
    ),
    "config.json: seed must be an integer": (
        "config.json",
        '{"run": {"env": {"env": "toy:point"}, "agent": "tdmpc2:ci", "seed": [1]}}',
    ),
}


@pytest.mark.parametrize("problem", DAMAGE)
def test_a_damaged_run_is_listed_with_what_is_wrong(folder, capsys, problem):
    name, text = DAMAGE[problem]
    path = folder / "a-2" / name
    path.unlink() if text is None else path.write_text(text)
    assert main([str(folder), "--json"]) == 0
    found = {entry["name"]: entry for entry in lines(capsys)}
    assert list(found) == ["a-2", "a-10", "sweep/deep"]
    assert found["a-2"]["status"] == "damaged"
    assert problem in found["a-2"]["problem"]
    assert found["a-2"]["return_best"] is not None, "what can be read is there"
    assert main([str(folder)]) == 0
    table = capsys.readouterr().out
    assert f"a-2: {found['a-2']['problem']}" in table
    assert "Traceback" not in table


def test_bytes_that_are_no_text_cost_a_line_and_no_run(folder, capsys):
    for name in ("metrics.jsonl", "command.txt", "versions.txt"):
        path = folder / "a-2" / name
        path.write_bytes(b"\xff\xfe\n" + path.read_bytes())
    assert main([str(folder), "--json"]) == 0
    first = lines(capsys)[0]
    assert (first["status"], first["commit"]) == ("completed", "0123456789ab-dirty")
    assert first["return_best"] is not None


def test_times_that_are_none_are_not_told(folder, capsys):
    (folder / "a-2/command.txt").write_text("2026-99-99 99:99:99  python\n")
    with (folder / "a-2/metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "time": 1e300}\n')
    for words in ([], ["--json"], ["--csv"], ["--since", "1d"]):
        assert main([str(folder), *words]) == 0
    (first,) = [e for e in list_runs([folder]) if e.name == "a-2"]
    assert (first.status, first.started) == ("completed", None)
    assert first.updated == pytest.approx(time.time(), abs=600), "of the files then"


def test_a_damaged_run_that_no_filter_can_judge_is_named(folder, capsys):
    (folder / "a-2/config.json").write_text("{")
    assert main([str(folder), "--env", "pendulum", "--json"]) == 0
    out, error = capsys.readouterr()
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["a-10"]
    assert "a-2" in error
    assert main([str(folder), "--status", "completed"]) == 0
    assert capsys.readouterr().err == "", "its status is known: it is damaged"


def test_a_failed_run_says_why_below_the_table(folder, capsys):
    path = folder / "a-2/summary.json"
    summary = {**json.loads(path.read_text()), "status": "failed", "error": "TrainingError: no env"}
    path.write_text(json.dumps(summary))
    assert main([str(folder)]) == 0
    assert "a-2: TrainingError: no env" in capsys.readouterr().out


def test_a_run_without_an_env_is_counted_in_updates(tmp_path, capsys):
    offline = {"env": {"env": "none"}, "replay": {"capacity_steps": 10, "load": "a.npz"}}
    write_run(tmp_path / "off", config=offline, summary={"status": "completed"})
    assert main([str(tmp_path)]) == 0
    assert "10,000 updates" in capsys.readouterr().out


def test_each_run_is_found_once_and_nothing_else_is_one(folder, tmp_path):
    (folder / "latest").symlink_to(folder / "a-10")
    (folder / "round").symlink_to(folder)
    (folder / "gone").symlink_to(folder / "nothing")
    (folder / ".cache/x").mkdir(parents=True)
    (folder / ".cache/x/summary.json").write_text("{}")
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text('{"model_type": "mlp"}')
    (folder / "a-2/checkpoints/best").mkdir(parents=True)
    (folder / "a-2/checkpoints/best/config.json").write_text('{"run": {}}')
    names = sorted(str(path.relative_to(folder)) for path in find_runs(folder))
    assert names == ["a-10", "a-2", "sweep/deep"]
    assert [entry.name for entry in list_runs([folder / "a-2"])] == ["a-2"]
    assert len(list_runs([folder, folder / "a-2", folder / "latest"])) == 3


def test_a_folder_that_cannot_be_listed_is_a_warning(folder, capsys, monkeypatch):
    path = type(folder)
    real = path.iterdir

    def iterdir(self):
        if self.name == "sweep":
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(path, "iterdir", iterdir)
    assert main([str(folder)]) == 0
    out, error = capsys.readouterr()
    assert "sweep cannot be listed (Permission denied)" in error
    assert "a-10" in out


def test_a_link_that_cannot_be_followed_costs_no_run(folder, capsys, monkeypatch):
    path = type(folder)
    real = path.is_dir

    def is_dir(self):
        if self.name == "dead":
            raise OSError(116, "Stale file handle")
        return real(self)

    (folder / "dead").symlink_to("/nowhere")
    monkeypatch.setattr(path, "is_dir", is_dir)
    assert main([str(folder), "--json"]) == 0
    out, error = capsys.readouterr()
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["a-2", "a-10", "sweep/deep"]
    assert error == f"warning: {folder}/dead cannot be looked at (Stale file handle)\n"


def test_a_folder_that_cannot_be_looked_at_is_one_sentence(folder, capsys, monkeypatch):
    def is_dir(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(folder), "is_dir", is_dir)
    assert main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: FOLDER: {folder} cannot be looked at (Permission denied)")


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "command.txt"])
def test_files_of_another_program_hide_no_run_below_them(folder, capsys, name):
    (folder / name).write_text('{"made by": "something else"}\n')
    (folder / "sweep" / name).write_text("{}\n")
    (folder / "a-2/config.json").unlink()
    (folder / "a-2/checkpoints/best").mkdir(parents=True)
    (folder / "a-2/checkpoints/best/config.json").write_text('{"run": {}}')
    assert main([str(folder), "--json"]) == 0
    found = {entry["name"]: entry["status"] for entry in lines(capsys)}
    assert found == {
        "runs": "damaged",
        "a-2": "damaged",
        "a-10": "completed",
        "sweep": "damaged",
        "sweep/deep": "stopped",
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["empty"], "empty holds no run"),
        ([], "runs is not a folder"),
        (["empty", "--since", "yesterday"], "--since: cannot be 'yesterday'"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1


def test_words_are_offered_for_completion():
    assert "damaged" in runs.words_after("--status")
    assert "best" in runs.words_after("--sort")
    assert "--since" in runs.words_after("runs")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0.00"), (9.0, "<0.01"), (120.0, "0.03"), (44_442.0, "12.35"), (4.4e6, "1,222")],
)
def test_hours_are_read_at_a_glance(tmp_path, capsys, seconds, shown):
    write_run(tmp_path / "run", summary={"status": "completed", "wall_time_s": seconds})
    assert main([str(tmp_path)]) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split()[7] == shown


def test_commands_without_a_run_take_the_newest(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    newest = tmp_path / "runs/sweep/deep"
    later = time.time() + 60
    for path in [newest / "metrics.jsonl", *(p for p in folder.rglob("*") if p.is_file())]:
        stamp = later if path.is_relative_to(newest) else later - 1000
        os.utime(path, (stamp, stamp))
    records = [json.loads(line) for line in (newest / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**record, "time": later}) + "\n" for record in records)
    (newest / "metrics.jsonl").write_text(text)
    (tmp_path / "runs/summary.json").write_text("{}")  # of another program, and newer
    for command in (status, report, plot):
        assert command.main([]) == 0
        assert capsys.readouterr().err.splitlines()[0] == "the newest run: runs/sweep/deep"
    assert (newest / "report.html").exists()
    assert (newest / "plot.png").exists()


@pytest.mark.parametrize("command", [status, report, plot, evaluate, enjoy])
@pytest.mark.parametrize("has_folder", [True, False])
def test_commands_without_a_run_where_there_is_none(
    tmp_path, capsys, monkeypatch, command, has_folder
):
    monkeypatch.chdir(tmp_path)
    if has_folder:
        (tmp_path / "runs").mkdir()
    assert command.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: run_dir: no run is named")


def test_enjoy_says_nothing_of_videos_where_there_is_no_run(tmp_path, capsys):
    assert enjoy.main([str(tmp_path / "none"), "--video"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no run" in line
