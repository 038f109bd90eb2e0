import json
import tomllib
from pathlib import Path

import pytest

from worldloom import MODEL_CATALOG, create_world_model
from worldloom.commands import main
from worldloom.training.data import create_random_buffer


def test_the_console_script_is_this_function() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["worldloom"] == f"{main.__module__}:{main.__name__}"


def test_presets_and_settings_are_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(MODEL_CATALOG)
    create_world_model("mlp:ci", latent_dim=8).save_pretrained(tmp_path)
    for name in ("mlp:ci", str(tmp_path)):
        assert main(["info", name]) == 0
        assert json.loads(capsys.readouterr().out)["model_type"] == "mlp"


def test_a_model_is_measured_and_drawn_on_its_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    create_world_model("mlp:ci", obs_shape=(4,), action_dim=2).save_pretrained(tmp_path / "model")
    create_random_buffer(60, (4,), 2, num_episodes=3, episode_length=20, seed=0).save(
        tmp_path / "data.npz"
    )
    words = [
        "--model",
        str(tmp_path / "model"),
        "--data",
        str(tmp_path / "data.npz"),
        "--horizon",
        "3",
    ]
    assert main(["evaluate", *words]) == 0
    assert len(json.loads(capsys.readouterr().out)["obs_error"]) == 3
    assert main(["imagine", *words, "--output-dir", str(tmp_path / "out")]) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["imagination.png"]


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["imagine", "--model", "drimer"], 2, "Invalid model identifier"),
        (["imagine", "--horizon", "0"], 2, "horizon"),
        (["imagine", "--test", "--seed", "-1"], 2, "--seed must be an integer >= 0, got -1"),
        (["evaluate", "--horizon", "-3"], 2, "--horizon must be an integer >= 1, got -3"),
        (["evaluate", "--data", "nothing.npz"], 2, "nothing.npz"),
        (["info", "file"], 2, "got the file"),
        (
            ["imagine", "--model", "mlp:ci", "--horizon", "2", "--output-dir", "file/below"],
            1,
            "file/below: cannot be written",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str],
    status: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert main(words) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
