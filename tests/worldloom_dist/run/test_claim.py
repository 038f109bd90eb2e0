"""Which folder a run gets, and when it may be deleted again."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.run.claim import Claim, choose_folder, claim_folder
from worldloom_dist.run.cli import parse
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.view import is_locked


def test_a_new_run_gets_the_next_number(tmp_path):
    config = parse([])
    assert choose_folder(config, tmp_path) == (tmp_path / "quick-0001", False)
    (tmp_path / "quick-0007").mkdir()
    (tmp_path / "quick-1²").mkdir()  # a digit, and no number
    assert choose_folder(config, tmp_path) == (tmp_path / "quick-0008", False)


def test_an_existing_run_goes_on_only_when_asked(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"run_id": "x", "run": parse([]).to_dict()}))
    with pytest.raises(ConfigurationError, match="--if-exists resume"):
        choose_folder(parse(["--run-dir", str(tmp_path)]))
    assert choose_folder(parse(["--run-dir", str(tmp_path), "--if-exists", "resume"])) == (
        tmp_path,
        True,
    )
    assert choose_folder(parse(["--run-dir", str(tmp_path / "new"), "--if-exists", "resume"])) == (
        tmp_path / "new",
        False,
    )


def test_two_launchers_that_chose_the_same_number_get_two_folders(tmp_path):
    config = parse(["--preset", "quick"])
    chosen, _ = choose_folder(config, tmp_path)
    assert claim_folder(config, chosen).path == tmp_path / "quick-0001"
    assert claim_folder(config, chosen).path == tmp_path / "quick-0002"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("--env gym:CartPole-v1 --agent dreamerv3:ci", "cartpole-v1-0001"),
        ("--env my_env:Thermostat", "my_env-thermostat-0001"),
        ("--env none --replay.load x.npz", "offline-0001"),
        ("--preset quick+debug", "quick+debug-0001"),
    ],
)
def test_a_run_without_a_preset_is_named_after_its_env(words, name, tmp_path):
    assert choose_folder(parse(words.split()), tmp_path) == (tmp_path / name, False)


def test_a_folder_that_was_named_is_used_as_it_is(tmp_path):
    config = parse(["--run-dir", str(tmp_path)])
    assert claim_folder(config, tmp_path).path == tmp_path


def test_a_root_that_leads_nowhere_is_one_sentence_and_no_endless_loop(tmp_path):
    root = tmp_path / "runs"
    root.symlink_to(tmp_path / "gone")
    config = parse([])
    chosen, _ = choose_folder(config, root)
    refusals = []

    def claim():
        try:
            claim_folder(config, chosen)
        except ConfigurationError as error:
            refusals.append(str(error))

    thread = threading.Thread(target=claim, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert refusals
    assert "cannot be written" in refusals[0]
    assert "name another folder" in refusals[0]


def test_a_folder_in_which_a_run_began_meanwhile_is_not_taken(tmp_path):
    folder = tmp_path / "run"
    config = parse(["--run-dir", str(folder), "--if-exists", "resume"])
    chosen, is_resumed = choose_folder(config)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="another launcher has begun a run in"):
        claim_folder(config, chosen, is_resumed=is_resumed)


@pytest.mark.parametrize("facts", [{}, {"is_made": True}, {"is_made": True, "has_begun": True}])
def test_only_a_folder_that_is_our_own_and_never_ran_is_discarded(tmp_path, facts):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "lock").touch()
    Claim(folder, **facts).discard()
    assert folder.exists()
    Claim(folder, is_made=True, is_held=True).discard()
    assert not folder.exists()


def test_what_a_run_has_recorded_is_not_discarded(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    Claim(tmp_path, is_made=True, is_held=True).discard()
    assert (tmp_path / "metrics.jsonl").exists()


def test_a_folder_is_discarded_where_it_was_made_wherever_an_env_has_gone(tmp_path, monkeypatch):
    for place in ("here", "there"):
        (tmp_path / place / "runs/x-0001").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    claim = Claim(Path("runs/x-0001"), is_made=True, is_held=True)
    monkeypatch.chdir(tmp_path / "there")
    claim.discard()
    assert not (tmp_path / "here/runs/x-0001").exists()
    assert (tmp_path / "there/runs/x-0001").exists()


def may_hold(folder):
    """Whether another process may."""
    code = (
        "import sys; from pathlib import Path; from worldloom_dist.run.folder import RunFolder\n"
        "RunFolder(Path(sys.argv[1])).hold()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], stderr=subprocess.PIPE)
    assert done.returncode == 0 or b"another launcher uses" in done.stderr
    return done.returncode == 0


def test_a_process_that_asks_after_its_own_run_keeps_it_until_it_lets_go(tmp_path):
    folder = RunFolder(tmp_path)
    folder.hold()
    folder.hold()
    assert is_locked(tmp_path / "lock")
    assert not may_hold(tmp_path)
    folder.release()
    assert not is_locked(tmp_path / "lock")
    assert may_hold(tmp_path)
