"""Foreign code that fails while it is imported or builds an env."""

import logging
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.building import EnvBuildError
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.factory import env_spec, make_env
from worldloom.envs.toy import PointEnv
from worldloom_dist.check_env import main as check_env
from worldloom_dist.launch import main as launch

MODULES = {
    "raises_at_import": "import math\nraise RuntimeError('boom')\n",
    "is_no_python": "x = 1\ndef f(:\n",
    "lacks_a_package": "import no_such_package\n",
    "leaves_at_import": "import sys\nsys.exit(0)\n",
    "needs_arguments": "class Env:\n    def __init__(self, path): ...\n    def method(self): ...\n",
    "leaves_when_built": "import sys\ndef Env():\n    sys.exit('no licence')\n",
}


@pytest.fixture(autouse=True)
def _modules_are_importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("FAULTY_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            "raises_at_import:Env",
            r"cannot be imported: RuntimeError: boom \(\S*raises_at_import.py:2\)",
        ),
        (
            "is_no_python:Env",
            r"cannot be imported: SyntaxError: invalid syntax \(\S*is_no_python.py:2\)",
        ),
        (
            "lacks_a_package:Env",
            r"ModuleNotFoundError: No module named 'no_such_package' \(\S*lacks_a_package.py:1\)",
        ),
        (
            "leaves_at_import:Env",
            r"cannot be imported: it called sys.exit\(0\) \(\S*leaves_at_import.py:2\)",
        ),
        (
            "leaves_when_built:Env",
            r"cannot be built: it called sys.exit\('no licence'\) \(\S*leaves_when_built.py:3\)",
        ),
        (
            "needs_arguments:Env",
            r"cannot be built: TypeError: .*missing 1 required positional argument: 'path';",
        ),
        (
            "needs_arguments:Env.method",
            r"cannot be built: TypeError: .*missing 1 required positional argument: 'self';",
        ),
        (
            "gym:raises_at_import:Env-v0",
            r"cannot be built: RuntimeError: boom \(\S*raises_at_import.py:2\)",
        ),
        (
            "gym:no_such_module:Env-v0",
            "cannot be built: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            "gym:GymV26Environment-v0",
            "cannot be built: ImportError: To use the gym compatibility environments",
        ),
    ],
)
def test_failing_code_of_the_users_is_answered_in_one_sentence_with_the_place(
    env: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        env_spec(EnvConfig(env=env))
    assert str(caught.value).endswith(f"for the whole traceback: worldloom check-env {env} --debug")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("env", ["raises_at_import:Env", "leaves_at_import:Env"])
def test_command_lines_answer_it_with_status_2(
    env: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        launch(
            [
                "--preset",
                "debug",
                "--runtime",
                "local",
                "--env",
                env,
                "--run-dir",
                str(tmp_path / "run"),
            ]
        )
        == 2
    )
    assert check_env([env]) == 2
    captured = capsys.readouterr()
    assert [line.partition(":")[0] for line in captured.err.splitlines()] == ["error", "error"]
    assert captured.out == ""
    assert not (tmp_path / "run").exists()
    with pytest.raises(EnvBuildError):
        check_env([env, "--debug"])


@pytest.mark.parametrize("processes", [False, True])
def test_env_that_cannot_be_built_again_at_once_is_tried_again(processes: bool) -> None:
    limits = EnvLimits(backoff_s=0.01)
    env = make_env(
        EnvConfig(env="faulty_envs:cannot_be_built_again"),
        seed=0,
        limits=limits,
        processes=processes,
    )
    env.reset()
    rows = [env.step({"action": np.zeros((1, 2), np.float32)}) for _ in range(6)]
    details = [fault.detail for fault in env.drain_faults()]
    env.close()
    assert len(details) == 2
    assert "the port is still in use" in details[1]
    assert rows[2].is_first[0]


class BlindEnv(PointEnv):
    """Takes no ``render_mode``, whatever it says."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}

    def __init__(self) -> None:
        super().__init__()


def test_registered_env_that_takes_no_render_mode_is_built_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gymnasium.register("Blind-v0", entry_point="test_building:BlindEnv", max_episode_steps=20)
    try:
        with caplog.at_level(logging.WARNING):
            make_env(EnvConfig(env="gym:Blind-v0"), seed=0, renders=True).reset()
        assert "no video of env Blind-v0: it takes no render_mode='rgb_array'" in caplog.text
        with pytest.raises(EnvBuildError, match="unexpected keyword argument 'render_mode'"):
            make_env(EnvConfig(env="gym:Blind-v0", pixels=True), seed=0)
    finally:
        gymnasium.registry.pop("Blind-v0")
