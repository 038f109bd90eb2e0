"""The command line: every flag is a field, and every mistake gets one sentence and exit status 2,
before anything is written.
"""

import dataclasses
import json
import socket

import pytest

from worldloom_dist import launch
from worldloom_dist.run.cli import UsageError, flag_names, parse
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.presets import PRESETS

FIXED_FLAGS = [
    "--preset",
    "--env",
    "--agent",
    "--workers",
    "--envs-per-worker",
    "--inference",
    "--inference-servers",
    "--replay.shards",
    "--replay.capacity-steps",
    "--replay.durability",
    "--train-ratio",
    "--learners",
    "--env-steps",
    "--eval-every",
    "--eval-episodes",
    "--seed",
    "--runtime",
    "--address",
    "--run-dir",
    "--if-exists",
    "--resume",
    "--metrics-port",
    "--metrics-host",
]


def mistakes(*words: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse(words)
    return str(caught.value).splitlines()


def test_the_published_flags_exist():
    assert set(FIXED_FLAGS) <= set(flag_names())


def test_no_flags_is_the_quick_preset():
    assert parse([]) == PRESETS["quick"]()


def test_flags_override_the_preset_and_reach_every_section():
    config = parse(
        [
            "--preset",
            "debug",
            "--workers",
            "3",
            "--replay.shards=4",
            "--env",
            "toy:counting",
            "--env.time-limit",
            "7",
            "--agent.batch-size",
            "32",
        ]
    )
    assert (config.preset, config.workers, config.replay.shards) == ("debug", 3, 4)
    assert (config.env.env, config.env.time_limit) == ("toy:counting", 7)
    assert config.agent_config().batch_size == 32
    assert config.replay.capacity_steps == PRESETS["debug"]().replay.capacity_steps


def test_underscores_and_equals_signs_are_accepted():
    assert parse(["--envs_per_worker=2"]).envs_per_worker == 2


def test_a_config_survives_json():
    config = parse(
        [
            "--run-dir",
            "runs/x",
            "--train-ratio",
            "3.5",
            "--agent.batch-size",
            "32",
            "--env.time-limit",
            "9",
        ]
    )
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "--replay.capcity-steps 9",
            "--replay.capcity-steps: no such option; did you mean --replay.capacity-steps?",
        ),
        (
            "--agent.batch-sise 9",
            "--agent.batch-sise: no such option; did you mean --agent.batch-size?",
        ),
        ("--workers many", "--workers: cannot be 'many'; it takes an integer"),
        ("--workers", "--workers: expected a value after it"),
        ("--workers 0", "workers must be an integer in [1, 100000], got 0"),
        ("--train-ratio -1", "train_ratio must be None or a number > 0, got -1.0"),
        (
            "--replay.durability maybe",
            "--replay.durability: cannot be 'maybe'; allowed: none, journal, fsync",
        ),
        ("--preset quik", "--preset: no preset named 'quik'; did you mean quick?"),
        ("quick", "quick: expected a flag like --env before it"),
        ("--resume /nowhere/at/all", "resume: /nowhere/at/all holds no run (no config.json)"),
        ("--env.sticky 0.5", "env.sticky is for atari only"),
        ("--agent tdmpc3:ci", "no model named 'tdmpc3:ci'; did you mean tdmpc2:ci?"),
        ("--learners 2 --runtime local", "learners must be 1 with --runtime local, got 2"),
    ],
)
def test_a_mistake_gets_one_sentence(words, expected):
    found = mistakes(*words.split())
    assert len(found) == 1
    assert expected in found[0]


def test_all_mistakes_are_reported_together():
    found = mistakes(
        *["--workers", "0", "--train-ratio", "-2", "--replay.shard", "2", "--seed", "x"]
    )
    assert len(found) == 4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--env gym:Pendulum-v9", "Pendulum-v1"),
        ("--env gym:CartPole-v1", "dreamerv3"),
        ("--env nosuch.module:make", "nosuch"),
        ("--workers 0 --env gym:CartPole-v1", "workers must be an integer in [1, 100000]"),
        ("--env none", "offline"),
        ("--replay.capacity-steps 3", "replay.capacity_steps"),
        ("--replay.band-steps 1", "band"),
        ("--replay.capacity-steps 100000000000000", "replay may take"),
        ("--metrics-port 99999", "metrics_port must be None or an integer in [0, 65535]"),
        ("--metrics-host no.such.host.x", "metrics_host"),
        ("--learner.device bogus", "learner.device must be auto, cpu, cuda"),
        ("--address 127.0.0.1:1", "nothing answers at 127.0.0.1:1"),
        ("--actors.min-live 5", "actors.min_live must be <= workers (2)"),
        ("--run-dir /dev/null/x", "run_dir"),
        ("--env dmc:nope", "nope"),
        ("--agent dreamerv3:size13m", "did you mean dreamerv3:size1"),
        ("--env.time-limit 0", "time_limit"),
    ],
)
def test_launch_refuses_with_status_2_and_writes_nothing(
    words, expected, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert launch.main(words.split()) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_exists_is_refused_and_told_how_to_go_on(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"run_id": "x", "run": parse([]).to_dict()}))
    assert launch.main(["--run-dir", str(tmp_path)]) == 2
    assert "--if-exists resume" in capsys.readouterr().err


@pytest.mark.parametrize("is_in_a_run", [False, True])
def test_going_on_without_naming_the_run_is_refused(is_in_a_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if is_in_a_run:
        config = parse([]).to_dict()
        (tmp_path / "config.json").write_text(json.dumps({"run_id": "x", "run": config}))
    before = sorted(tmp_path.iterdir())
    assert launch.main(["--preset", "debug", "--if-exists", "resume"]) == 2
    error = capsys.readouterr().err
    assert "--if-exists resume needs --run-dir" in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_resume_that_changes_the_architecture_shows_the_difference(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"run_id": "x", "run": parse([]).to_dict()}))
    assert launch.main(["--resume", str(tmp_path), "--agent.latent-dim", "128"]) == 2
    error = capsys.readouterr().err
    assert "latent_dim" in error
    assert "128" in error
    assert launch.main(["--resume", str(tmp_path), "--env", "gym:MountainCarContinuous-v0"]) == 2
    assert "Pendulum-v1" in capsys.readouterr().err


def test_resume_keeps_the_settings_of_the_run(tmp_path):
    before = parse(["--workers", "5", "--seed", "3", "--agent.batch-size", "32"])
    (tmp_path / "config.json").write_text(json.dumps({"run_id": "x", "run": before.to_dict()}))
    after = parse(["--resume", str(tmp_path), "--env-steps", "999"])
    assert after == dataclasses.replace(before, resume=tmp_path, env_steps=999)


def test_a_named_port_in_use_is_refused(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert launch.main(["--metrics-port", str(port)]) == 2
    assert f"metrics_port: {port}" in capsys.readouterr().err


def test_help_lists_presets_and_flags(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in FIXED_FLAGS if flag != "--env")
    assert "--env " in text
    assert "quick" in text


@pytest.mark.parametrize(
    ("words", "steps", "whose"),
    [
        ("", 5_000, "the demo"),
        ("--env dmc:cup-catch --agent tdmpc2:1m", 4_000_000, "--env dmc:cup-catch --agent tdmpc2"),
        ("--env-steps 321 --agent dreamerv3:ci", 321, "--env-steps 321"),
    ],
)
def test_help_lists_the_defaults_of_the_run_that_the_other_words_make(capsys, words, steps, whose):
    with pytest.raises(SystemExit):
        parse([*words.split(), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    described = text.partition("--env-steps INT")[2].partition("--train-steps INT")[0]
    assert f"(default: {steps})" in described
    assert whose in text.partition("Defaults are those of")[2].partition("options")[0]


def test_a_switch_needs_no_value_and_takes_one():
    assert parse(["--wandb", "--workers", "3"]).wandb
    assert parse(["--tensorboard"]).tensorboard
    assert not parse(["--tensorboard", "False"]).tensorboard
    assert parse(["--metrics-auth-file", "x"]).to_dict()["metrics_auth_file"] == "x"
