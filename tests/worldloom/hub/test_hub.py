"""Agents go to a hub and come back, through a small local server that speaks the API of
``huggingface_hub``; no hub outside was ever asked.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import constants

import worldloom
from tests.worldloom.export.small import saved_agent
from tests.worldloom.hub.local_hub import TOKEN, LocalHub, serving
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.commands import main
from worldloom.core.exceptions import (
    CheckpointError,
    ConfigurationError,
    HubError,
    MissingDependencyError,
)
from worldloom.export import export_policy
from worldloom.hub import HubAddress, located, push
from worldloom.training.saved_agents import SavedAgent

WORDS = [
    *("train", *TINY["tdmpc2:ci"], "--env", "gym:Pendulum-v1", "--env.time-limit", "20"),
    *("--env-steps", "60", "--eval-episodes", "2", "--metrics-port", "0"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "runs/pendulum"
    assert main([*WORDS, "--run-dir", str(folder)]) == 0
    (folder / "videos").mkdir(exist_ok=True)
    (folder / "videos/eval-000000060-0.gif").write_bytes(b"GIF89a")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with serving() as made:
        cache = str(tmp_path / "cache")
        for name, value in (
            ("ENDPOINT", made.url),
            (
                "HUGGINGFACE_CO_URL_TEMPLATE",
                made.url + "/{repo_id}/resolve/{revision}/{filename}",
            ),
            ("HF_HUB_CACHE", cache),
            ("HF_TOKEN_PATH", str(tmp_path / "token")),
            ("HF_STORED_TOKENS_PATH", str(tmp_path / "tokens")),
            ("HF_HUB_DISABLE_XET", True),
            ("HF_HUB_DISABLE_TELEMETRY", True),
            ("HF_HUB_DISABLE_PROGRESS_BARS", True),
            ("AGENT_HARNESSES_PATH", str(tmp_path / "harnesses.json")),
            ("HF_HUB_OFFLINE", False),
        ):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


def test_a_run_goes_to_the_hub_and_comes_back(
    run: Path, hub: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "hf://ada/pendulum"]) == 0
    told = capsys.readouterr().out.splitlines()
    sha, files = hub.repos["ada/pendulum"].commits[-1]
    assert told[-1] == f"{hub.url}/ada/pendulum/commit/{sha}"
    checkpoint = next((run / "checkpoints").glob("step-*")).name
    assert {name for name in files if not name.startswith(".")} == {
        *("README.md", "config.json", "summary.json", "policy.json", "curve.png", "film.gif"),
        f"checkpoints/{checkpoint}/manifest.json",
        f"checkpoints/{checkpoint}/tree.json",
        f"checkpoints/{checkpoint}/tensors.safetensors",
    }
    assert any(path.endswith("/info/lfs/objects/batch") for _, path in hub.asked)
    facts = json.loads(files["config.json"])
    assert facts["run"]["run_dir"] is None
    assert "gateway" not in facts["run"]
    ours, theirs = (worldloom.load_agent(place, seed=4) for place in (run, "hf://ada/pendulum"))
    obs = np.array([1.0, 0.0, 0.5], np.float32)
    for _ in range(3):
        np.testing.assert_array_equal(ours.act(obs), theirs.act(obs))
    assert str(theirs.path).startswith(constants.HF_HUB_CACHE)


def test_nothing_is_shared_that_a_link_in_the_run_leads_to(
    run: Path, hub: LocalHub, tmp_path: Path
) -> None:
    received = shutil.copytree(run, tmp_path / "received")
    (tmp_path / "mine.gif").write_bytes(b"my own")
    (received / "videos/eval-999999999-0.gif").symlink_to(tmp_path / "mine.gif")
    (tmp_path / "mine.txt").write_text("my own secret")
    for name in ("versions.txt", "command.txt"):
        (received / name).unlink()
        (received / name).symlink_to(tmp_path / "mine.txt")
    push(received, "ada/film")
    files = hub.repos["ada/film"].commits[-1][1]
    assert files["film.gif"] == b"GIF89a"
    assert b"my own" not in b"".join(files.values())
    (received / "videos").rename(tmp_path / "videos")
    (received / "videos").symlink_to(tmp_path / "videos")
    push(received, "ada/film")
    assert "film.gif" not in hub.repos["ada/film"].commits[-1][1]
    summary = (received / "summary.json").rename(tmp_path / "summary.json")
    (tmp_path / "mine.json").write_text('{"eval": null, "token": "my own secret"}')
    (received / "summary.json").symlink_to(tmp_path / "mine.json")
    push(received, "ada/film", needs_score=False)
    files = hub.repos["ada/film"].commits[-1][1]
    assert b"my own" not in b"".join(files.values())
    (received / "summary.json").unlink()
    summary.rename(received / "summary.json")
    origin = SavedAgent.read(received).origin
    (received / "policy").mkdir()
    (received / "policy/policy.onnx").symlink_to(tmp_path / "mine.gif")
    exported = {"run": dict(origin), "file": "policy.onnx", "files": ["policy.onnx"]}
    for contract in (exported, {"run": dict(origin)}, exported | {"files": [3]}):
        (received / "policy/policy.json").write_text(json.dumps(contract))
        with pytest.raises(CheckpointError, match="export it again"):
            push(received, "ada/policy")
    assert not hub.repos.get("ada/policy") or not hub.repos["ada/policy"].commits


def test_the_card_says_score_command_and_use(run: Path, hub: LocalHub) -> None:
    push(run, "ada/pendulum", license="apache-2.0")
    _, files = hub.repos["ada/pendulum"].commits[-1]
    card = files["README.md"].decode()
    _, head, body = card.split("---\n", 2)
    facts = yaml.safe_load(head)
    assert facts["license"] == "apache-2.0"
    assert facts["library_name"] == "worldloom"
    assert {"reinforcement-learning", "tdmpc2", "gym:Pendulum-v1"} <= set(facts["tags"])
    score = json.loads((run / "summary.json").read_text())["eval"]["return_mean"]
    assert facts["model-index"][0]["results"][0]["metrics"][0]["value"] == pytest.approx(score)
    assert f"{score:.1f} +- " in body
    assert "over 2 episodes" in body
    assert "-m worldloom_dist.launch --preset debug" in body
    assert not [text for text in files.values() if str(run.parent).encode() in text]
    assert 'load_agent("hf://ada/pendulum")' in body
    assert "![Return over env steps](curve.png)" in body
    assert "![An episode](film.gif)" in body
    assert "torch " in body


def test_what_is_on_a_hub_is_a_run_for_every_command(
    run: Path, hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, "ada/pendulum")
    capsys.readouterr()
    assert main(["evaluate", "hf://ada/pendulum", "--episodes", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(run), "--episodes", "2"]) == 0
    assert found["returns"] == json.loads(capsys.readouterr().out)["returns"]
    assert main(["export", "hf://ada/pendulum", "--format", "safetensors", "-o", "out"]) == 0
    shutil.rmtree("out")
    assert main(["export", "hf://ada/pendulum"]) == 2
    assert "name a folder with -o" in capsys.readouterr().err


def test_a_new_run_begins_with_what_is_on_the_hub(
    run: Path, hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, "ada/pendulum")
    begun = tmp_path / "begun"
    few = [*WORDS, "--env-steps", "18", "--seed", "5", "--agent.learning-rate", "1e-12"]
    assert main([*few, "--init-from", "hf://ada/pendulum", "--run-dir", str(begun)]) == 0
    ours, theirs = (worldloom.load_agent(place, seed=4) for place in (run, begun))
    obs = np.array([1.0, 0.0, 0.5], np.float32)
    np.testing.assert_allclose(ours.act(obs), theirs.act(obs), atol=1e-4)  # it learns nothing
    plain = tmp_path / "plain"
    assert main([*few, "--run-dir", str(plain)]) == 0
    ours, theirs = (worldloom.load_agent(place, seed=4) for place in (run, plain))
    assert not np.allclose(ours.act(obs), theirs.act(obs), atol=1e-2)
    assert main(["train", "--resume", str(begun), "--env-steps", "60"]) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--agent.latent-dim", "24"], "agent.latent_dim: the run was made with 16, not 24"),
        (["--env", "gym:MountainCarContinuous-v0"], "observations: it knows"),
        (["--init-from", "nowhere"], "init_from: there is nothing at nowhere"),
        (["--init-from", "hf://walker"], "hub address must be USER/NAME"),
    ],
)
def test_a_run_cannot_begin_with_another_agent(
    words: list[str],
    sentence: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status = main([*WORDS, "--init-from", str(run), *words, "--run-dir", str(tmp_path / "begun")])
    error = capsys.readouterr().err
    assert status == 2, error
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "begun").exists()


def test_an_exported_policy_goes_with_its_checkpoint(
    run: Path, hub: LocalHub, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    exported = export_policy(copy, copy / "policy", decisions=5)
    push(copy, "ada/pendulum")
    _, files = hub.repos["ada/pendulum"].commits[-1]
    assert set(exported.files) <= set(files)
    assert json.loads(files["policy.json"])["file"] == "policy.onnx"
    assert b"run_policy.py" in files["README.md"]


def test_a_second_push_leaves_one_checkpoint(run: Path, hub: LocalHub, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    push(copy, "ada/pendulum")
    old = next((copy / "checkpoints").glob("step-*"))
    old.rename(old.with_name("step-000000000099"))
    push(copy, "ada/pendulum")
    commits = hub.repos["ada/pendulum"].commits
    found = {name.split("/")[1] for name in commits[-1][1] if name.startswith("checkpoints/")}
    assert found == {"step-000000000099"}
    before = located(f"hf://ada/pendulum@{commits[1][0]}")
    assert [path.name for path in (before / "checkpoints").iterdir()] == [old.name]


def test_a_run_takes_the_place_of_an_agent_that_was_pushed_before(
    run: Path, hub: LocalHub, tmp_path: Path
) -> None:
    path = saved_agent(tmp_path / "agent", "tdmpc2:ci", "gym:Pendulum-v1")
    push(path, "ada/pendulum", needs_score=False)
    push(run, "ada/pendulum")
    files = hub.repos["ada/pendulum"].commits[-1][1]
    assert not {"manifest.json", "tree.json", "tensors.safetensors"} & set(files)
    found = worldloom.load_agent("hf://ada/pendulum").path
    assert found.parent.name == "checkpoints"


def test_a_policy_of_other_weights_is_not_pushed_under_their_name(
    run: Path, hub: LocalHub, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    export_policy(copy, copy / "policy")
    push(copy, "ada/pendulum")
    assert "policy.onnx" in hub.repos["ada/pendulum"].commits[-1][1]
    contract = json.loads((copy / "policy/policy.json").read_text())
    contract["run"]["train_steps"] -= 1
    (copy / "policy/policy.json").write_text(json.dumps(contract))
    pushed = push(copy, "ada/pendulum")
    left = hub.repos["ada/pendulum"].commits[-1][1]
    assert not {"policy.onnx", "parity.json", "run_policy.py"} & set(left)
    assert any("of another checkpoint" in note for note in pushed.notes)


def test_a_saved_agent_goes_without_a_run(hub: LocalHub, tmp_path: Path) -> None:
    path = saved_agent(tmp_path / "agent", "dreamerv3:ci", "gym:CartPole-v1")
    with pytest.raises(ConfigurationError, match="never evaluated"):
        push(path, "ada/cartpole")
    push(path, "ada/cartpole", needs_score=False, private=True)
    assert hub.repos["ada/cartpole"].private
    _, files = hub.repos["ada/cartpole"].commits[-1]
    assert b"| Return | not evaluated |" in files["README.md"]
    assert worldloom.load_agent("hf://ada/cartpole").action_space.n == 2


def test_the_cache_is_enough_without_a_network(
    run: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, "ada/pendulum")
    first = located("hf://ada/pendulum")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert located("hf://ada/pendulum") == first
    assert len(hub.asked) == asked
    with pytest.raises(HubError, match=r"is not in the cache .* HF_HUB_OFFLINE"):
        located("hf://ada/other")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        push(run, "ada/pendulum")


def test_a_pickle_is_never_fetched(hub: LocalHub) -> None:
    pickled = b"cos\nsystem\n(S'true'\ntR."
    hub.commit("eve/bad", {"pytorch_model.bin": pickled, "config.json": b"{}"})
    with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin, and nothing is ever unpick"):
        worldloom.load_agent("hf://eve/bad")
    assert not any(path.endswith("pytorch_model.bin") for _, path in hub.asked)


def test_a_hub_without_the_agent_says_so(hub: LocalHub, run: Path) -> None:
    push(run, "ada/pendulum")
    with pytest.raises(ConfigurationError, match="has no such model"):
        located("hf://ada/missing")
    with pytest.raises(ConfigurationError, match="has no revision 'v9'"):
        located("hf://ada/pendulum@v9")


def test_a_wrong_token_is_told(
    run: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert main(["push", str(run), "ada/pendulum"]) == 2
    error = capsys.readouterr().err
    assert "does not let this token in (status 401)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pendulum"], "hub address must be USER/NAME"),
        (["ada/pen dulum"], "hub address must be USER/NAME"),
        (["ada/a--b"], "hub address must be USER/NAME"),
        (["ada/pendulum@v1"], "leave @REVISION out"),
        (["ada/pendulum", "--episodes", "0"], "episodes must be None or an integer >= 1, got 0"),
        (["ada/pendulum", "--license", " "], "license must be a short name"),
    ],
)
def test_wrong_words_are_one_sentence(
    words: list[str],
    sentence: str,
    run: Path,
    hub: LocalHub,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["push", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert not hub.asked


def test_no_token_and_no_score_are_told_before_the_hub_is_asked(
    run: Path,
    hub: LocalHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({**summary, "eval": None}))
    assert main(["push", str(copy), "ada/pendulum"]) == 2
    assert "was never evaluated, so its card would have no score" in capsys.readouterr().err
    assert not hub.asked
    assert main(["push", str(copy), "ada/pendulum", "--episodes", "3"]) == 0
    assert b"over 3 episodes" in hub.repos["ada/pendulum"].commits[-1][1]["README.md"]
    capsys.readouterr()
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(run), "ada/pendulum"]) == 2
    assert "there is no token to push with; set HF_TOKEN" in capsys.readouterr().err


def test_a_hub_that_fails_is_one_sentence(
    run: Path,
    hub: LocalHub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.fails_with = 500
    assert main(["push", str(run), "ada/pendulum"]) == 1
    error = capsys.readouterr().err
    assert "answered with status 500" in error
    assert error.count("\n") == 1
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(run), "ada/pendulum"]) == 1
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9 cannot be reached" in error
    assert error.count("\n") == 1
    with pytest.raises(HubError, match="cannot be reached"):
        worldloom.load_agent("hf://ada/pendulum")


@pytest.mark.long
def test_the_client_s_own_settings_count(run: Path, tmp_path: Path) -> None:
    with serving() as made:
        env = {
            **os.environ,
            "HF_ENDPOINT": made.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        code = (
            "import sys, worldloom; from worldloom.hub import push; "
            "push(sys.argv[1], 'ada/own'); print(worldloom.load_agent('hf://ada/own').path)"
        )
        told = subprocess.run(
            [sys.executable, "-c", code, run], env=env, capture_output=True, text=True, check=True
        )
    assert told.stdout.startswith(str(tmp_path / "hub/models--ada--own"))


@pytest.mark.parametrize("text", ["hf://ada/walker@v1", "ada/walker@v1", "hf:/ada/walker@v1"])
def test_an_address_is_read(text: str) -> None:
    assert HubAddress.of(text) == HubAddress("ada/walker", "v1")


def test_a_missing_package_names_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"huggingface_hub: pip install .*\[hub\]"):
        located("hf://ada/pendulum")


def test_what_belongs_to_the_machine_stays_there(run: Path, hub: LocalHub, tmp_path: Path) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    words = (
        "--env gym:Pendulum-v1 --run-dir /home/ada/run --metrics-auth-file=/home/ada/secret "
        "--gateway.token-file /home/ada/token --address 10.0.0.7:6379 "
        "--replay.load /home/ada/a.npz,rllib:/home/ada/b,lerobot:/home/ada/d?obs/e=f "
        "--replay.held-out=/home/ada/c.npz --seed 3"
    )
    (mine / "command.txt").write_text(
        f"2026-11-30 07:00:00  python -m worldloom_dist.launch {words}\n"
    )
    config = json.loads((mine / "config.json").read_text())
    config["run"]["replay"] |= {"load": "/home/ada/a.npz", "held_out": "/home/ada/c.npz"}
    config["run"]["metrics_auth_file"] = "/home/ada/secret"
    (mine / "config.json").write_text(json.dumps(config))
    summary = json.loads((mine / "summary.json").read_text())
    summary["imports_left_out"] = {"/home/ada/a.npz": "it is damaged"}
    (mine / "summary.json").write_text(json.dumps(summary))
    push(mine, "ada/pendulum")
    _, files = hub.repos["ada/pendulum"].commits[-1]
    names = ("README.md", "config.json", "policy.json", "summary.json")
    text = b"".join(files[name] for name in names)
    assert b"/home/ada" not in text
    assert b"10.0.0.7" not in text
    command = (
        "--env gym:Pendulum-v1 --replay.load 'a.npz,rllib:b,lerobot:d?obs/e=f' "
        "--replay.held-out c.npz --seed 3"
    )
    assert f"python -m worldloom_dist.launch {command}\n" in files["README.md"].decode()
