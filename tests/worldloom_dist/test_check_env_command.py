import json
import subprocess
import sys
from pathlib import Path

import pytest

from worldloom.core.exceptions import EnvFailureError
from worldloom_dist.check_env import main

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_good_env_gives_status_0_and_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["toy:point", "--steps", "100", "--env.action-repeat", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["spec"]["action_repeat"] == 2
    assert (report["facts"]["episodes"], report["facts"]["decisions"]) == (4, 96)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gym:Pendulm-v1"], "did you mean Pendulum-v1"),
        (["toy:point", "--steps", "0"], "steps must be >= 1"),
        (["toy:point", "--env.action-repeat", "0"], "env.action_repeat must be >= 1, got 0"),
        (["toy:point", "--seed", "-1"], "seed must be >= 0, got -1"),
        (["toy:point", "--timeout-s", "0"], "timeout_s must be a number in (0, 10"),
        (["toy:point", "--timeout-s", "inf"], "timeout_s must be a finite number in (0, 10"),
    ],
)
def test_wrong_input_gives_status_2_and_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_wrong_flag_value_gives_status_2() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["toy:point", "--env.pixels", "maybe"])
    assert caught.value.code == 2


def test_broken_env_gives_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "worldloom" / "envs"))
    monkeypatch.setenv("FAULTY_DIR", str(tmp_path))
    assert main(["faulty_envs:raises", "--steps", "50"]) == 1
    assert "NOT good" in capsys.readouterr().out


def test_example_env_is_found_from_its_folder_and_fit_to_train_on() -> None:
    command = [
        sys.executable,
        "-m",
        "worldloom_dist.check_env",
        "custom_env:Thermostat",
        "--steps",
        "200",
    ]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "good to train on" in done.stdout
    assert "nothing to change" in done.stdout


PRINTING = """
import os
from worldloom.envs.toy import PointEnv

class Env(PointEnv):
    def step(self, action):
        print("from Python")
        os.write(1, b"from below Python\\n")
        return super().step(action)
"""


def test_json_is_not_disturbed_by_an_env_that_prints(tmp_path: Path) -> None:
    (tmp_path / "printing.py").write_text(PRINTING)
    command = [
        sys.executable,
        "-m",
        "worldloom_dist.check_env",
        "printing:Env",
        "--steps",
        "10",
        "--json",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert json.loads(done.stdout)["spec"]["name"] == "printing:Env"
    assert "from Python" in done.stderr
    assert "from below Python" in done.stderr


def test_the_env_may_be_named_as_a_run_takes_it(capsys):
    assert main(["--env", "toy:point", "--steps", "30"]) == 0
    assert "toy:point" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([])


def test_what_an_env_raises_is_shown_with_its_place_and_on_demand_its_traceback(tmp_path, capsys):
    (tmp_path / "motor_env.py").write_text(
        "from worldloom.envs.toy import PointEnv\n\n\n"
        "class Cart(PointEnv):\n"
        "    def step(self, action):\n"
        "        raise KeyError('motor')\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        assert main(["motor_env:Cart", "--steps", "10"]) == 1
        text = capsys.readouterr().out
        assert f"KeyError: 'motor' ({tmp_path}/motor_env.py:6)" in text
        assert "agents that can act here: dreamerv3, mlp, r2dreamer, tdmpc2" in text
        with pytest.raises(EnvFailureError) as failed:
            main(["motor_env:Cart", "--steps", "10", "--debug"])
        assert isinstance(failed.value.__context__, KeyError)
    finally:
        sys.path.remove(str(tmp_path))


def test_agents_that_cannot_act_are_not_offered(capsys):
    assert main(["gym:CartPole-v1", "--steps", "20"]) == 0
    assert "agents that can act here: dreamerv3, mlp, r2dreamer\n" in capsys.readouterr().out
