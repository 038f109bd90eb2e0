"""The authors' code is run as it is, goes on where it was stopped, and is read as our runs are."""

import dataclasses
import json
import signal
import subprocess
import sys
import threading

import pytest

from tests.worldloom_dist.reproduce.authors_code import make_checkout
from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.reproduce import TARGETS, peers, tdmpc2_authors
from worldloom_dist.reproduce.peers import Peer, find_peer, peer_records
from worldloom_dist.run.signals import StopFlag

TARGET = TARGETS["tdmpc2/cup-catch"]


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "authors")


def started(checkout, folder, **wanted):
    settings = {"task": "cup-catch", "steps": 20, "seed": 1, "eval_episodes": 2, "model_size": 1}
    words = [checkout, folder, json.dumps({**settings, **wanted})]
    return subprocess.Popen(
        [sys.executable, tdmpc2_authors.__file__, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(*args, **wanted):
    process = started(*args, **wanted)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return [json.loads(line) for line in (args[1] / "episodes.jsonl").read_text().splitlines()]


def test_their_loop_tells_of_its_episodes_and_of_the_last_evaluation(checkout, tmp_path):
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    lines = finished(checkout, tmp_path / "run")
    assert {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()} == before
    assert [(line["kind"], line["env_steps"]) for line in lines] == [
        ("episode", 10),
        ("episode", 20),
        ("episode", 30),
        ("eval", 40),
        ("episode", 40),
    ]
    assert len(lines[3]["returns"]) == 2
    assert len(set(lines[3]["returns"])) == 2
    assert all(line["length"] == 5 for line in lines if line["kind"] == "episode")


def test_an_end_within_an_episode_is_evaluated_as_well(checkout, tmp_path):
    lines = finished(checkout, tmp_path / "run", steps=12)
    assert [(line["kind"], line["env_steps"]) for line in lines] == [
        ("episode", 10),
        ("episode", 20),
        ("eval", 24),
    ]
    assert len(lines[-1]["returns"]) == 2


def test_a_loop_that_was_stopped_goes_on_as_if_it_had_not_been(checkout, tmp_path):
    whole = finished(checkout, tmp_path / "whole")
    folder = tmp_path / "stopped"
    process = started(checkout, folder, slow=0.05)
    path = folder / "state.pt"
    seen = threading.Event()
    for _ in range(600):
        if path.exists() or process.poll() is not None:
            break
        seen.wait(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    with (folder / "episodes.jsonl").open("a") as file:  # as a kill may leave it
        file.write('{"kind": "episode", "env_st')
    again = finished(checkout, folder)
    drop = [{k: v for k, v in line.items() if k != "hours"} for line in again]
    assert drop == [{k: v for k, v in line.items() if k != "hours"} for line in whole]


def test_a_peer_is_run_once_and_read_as_a_run(checkout, tmp_path, monkeypatch):
    def command(target, seed, checkout, folder):
        wanted = {"task": "cup-catch", "steps": 10, "seed": seed, "model_size": 1}
        return [tdmpc2_authors.__file__, str(checkout), str(folder), json.dumps(wanted)]

    kind = peers.KINDS["tdmpc2"]
    quick = dataclasses.replace(kind, command=command)
    monkeypatch.setattr(peers, "KINDS", {"tdmpc2": quick})
    peer = Peer(target=TARGET, checkout=checkout, python=sys.executable)
    folder = tmp_path / "peer"
    assert peer.run(1, folder, StopFlag())
    head, *records = peer_records(TARGET, 1, folder)
    assert (head["kind"], head["status"], head["seed"]) == ("run", "completed", 1)
    assert head["env_steps"] == 20
    assert head["precision"] == "float32"
    assert head["command"][:2] == ["tdmpc2_authors.py", checkout.name], "no folder of this machine"
    assert [r["kind"] for r in records] == ["episode", "eval", "episode"]
    said = (folder / "log.txt").read_text()
    assert peer.run(1, folder, StopFlag())
    assert (folder / "log.txt").read_text() == said, "it was complete"
    with pytest.raises(ConfigurationError, match="run of another kind"):
        peer.run(2, folder, StopFlag())
    stop = StopFlag()
    stop.set("a test")
    assert not peer.run(2, tmp_path / "other", stop)
    assert json.loads((tmp_path / "other/run.json").read_text())["status"] == "stopped"


def test_a_folder_in_which_their_code_is_at_work_is_refused(checkout, tmp_path, monkeypatch):
    """Its launcher was killed: what it had started holds the folder."""
    folder = tmp_path / "peer"
    started_with = []
    real = subprocess.Popen

    def popen(command, **options):
        if lock := options.pop("pass_fds", ()):  # as the authors' code that a launcher leaves
            sleeper = [sys.executable, "-c", "input()"]
            left = real(sleeper, stdin=subprocess.PIPE, pass_fds=lock, start_new_session=True)
            started_with.append(left)
        return real(command, **options)

    peer = Peer(target=TARGET, checkout=checkout, python=sys.executable)
    stop = StopFlag()
    stop.set("a test")
    monkeypatch.setattr(peers.subprocess, "Popen", popen)
    assert not peer.run(1, folder, stop)
    monkeypatch.undo()
    (left,) = started_with
    said = (folder / "log.txt").read_bytes()
    with pytest.raises(ConfigurationError, match=r"at work in .*peer already; wait for it or end"):
        peer.run(1, folder, stop)
    assert (folder / "log.txt").read_bytes() == said
    left.communicate(b"\n", timeout=60)
    assert not peer.run(1, folder, stop)


@pytest.mark.parametrize("name", ["tdmpc2/cup-catch", "dreamerv3/walker-stand"])
def test_other_code_does_not_go_on(name, checkout, tmp_path, monkeypatch):
    folder = tmp_path / "peer"
    peer = Peer(target=TARGETS[name], checkout=checkout, python=sys.executable)
    stop = StopFlag()
    stop.set("a test")
    monkeypatch.setattr(peers, "git_commit", lambda *_, **__: "aaaaaaaaaaaa")
    assert not peer.run(1, folder, stop)
    before = (folder / "run.json").read_text()
    monkeypatch.setattr(peers, "git_commit", lambda *_, **__: "bbbbbbbbbbbb")
    with pytest.raises(ConfigurationError, match=r"begun with .* at a{12}, and .* is at b{12}; ch"):
        peer.run(1, folder, stop)
    assert (folder / "run.json").read_text() == before
    (folder / "run.json").write_text(before.replace('"stopped"', '"completed"'))
    assert peer.run(1, folder, stop), "what is complete has its commit beside it"


def test_a_sitting_that_was_killed_counts(checkout, tmp_path):
    folder = tmp_path / "peer"
    peer = Peer(target=TARGET, checkout=checkout, python=sys.executable)
    stop = StopFlag()
    stop.set("a test")
    assert not peer.run(1, folder, stop)
    (folder / "lock").unlink()  # as folders of old are
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "status": "starting", "hours": 0.0}))
    line = {"kind": "episode", "env_steps": 1000, "return": 1.0, "length": 500, "ended": "last"}
    (folder / "episodes.jsonl").write_text(json.dumps({**line, "hours": 2.5}) + "\n")
    assert peer_records(TARGET, 1, folder)[0]["hours"] == 2.5
    assert not peer_records(TARGET, 2, folder), "it is of another seed"
    assert not peer.run(1, folder, stop)
    assert json.loads((folder / "run.json").read_text())["hours"] >= 2.5


def test_code_that_fails_says_so(checkout, tmp_path):
    (checkout / "tdmpc2/trainer/online_trainer.py").write_text("raise RuntimeError('theirs')\n")
    peer = Peer(target=TARGET, checkout=checkout, python=sys.executable)
    with pytest.raises(subprocess.CalledProcessError):
        peer.run(1, tmp_path / "peer", StopFlag())
    assert "theirs" in (tmp_path / "peer/log.txt").read_text()
    assert json.loads((tmp_path / "peer/run.json").read_text())["status"] == "failed"


def test_packages_that_are_missing_are_named(checkout, monkeypatch):
    kind = peers.KINDS["tdmpc2"]
    wanted = ("torch", "no-such-package", "gymnasium==0.1")
    odd = dataclasses.replace(kind, packages=wanted)
    monkeypatch.setattr(peers, "KINDS", {"tdmpc2": odd})
    with pytest.raises(ConfigurationError, match=r"lacks no-such-package, gymnasium==0\.1, which"):
        find_peer(TARGET, checkout, None)
    with pytest.raises(ConfigurationError, match=r"--peer-python: .*nothing cannot be run"):
        find_peer(TARGET, checkout, checkout / "nothing")


def test_scores_that_dreamerv3_plays_again_count_once(tmp_path):
    lines = [(1002, 1.0), (2002, 2.0), (3002, 3.0), (2004, 20.0), (3004, 30.0)]
    (tmp_path / "logdir").mkdir()
    text = "".join(f'{{"step": {step}, "episode/score": {score}}}\n' for step, score in lines)
    (tmp_path / "logdir/scores.jsonl").write_text(text + '{"step": 4, "fps": 1}\n{"step": 40')
    found = peers.KINDS["dreamerv3"].read(tmp_path)
    assert [(r["env_steps"], r["return"]) for r in found] == [
        (1002, 1.0),
        (2002, 2.0),
        (2004, 20.0),
        (3004, 30.0),
    ]
    assert all(r["kind"] == "episode" and r["ended"] == "last" for r in found)


def test_dreamerv3_s_line_has_the_settings_of_the_target(tmp_path):
    target = TARGETS["dreamerv3/walker-stand-pixels"]
    words = peers.KINDS["dreamerv3"].command(target, 3, tmp_path, tmp_path / "out")
    assert words[1:4] == ["--configs", "dmc_vision", "size1m"]
    line = " ".join(words)
    for part in (
        "--task dmc_walker_stand",
        "--seed 3",
        "--env.dmc.repeat 2",
        "--run.steps 30000",
        "--run.train_ratio 256.0",
        "--run.envs 1",
        "--jax.platform cpu",
    ):
        assert part in line
