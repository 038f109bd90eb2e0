import logging
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import FakePolicy
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import build_env, env_spec, make_env
from worldloom.envs.local import LocalVectorEnv
from worldloom_dist.actors.evaluation import Evaluation, Evaluator
from worldloom_dist.actors.films import Recorder, write_films


def evaluate(env: str, films: int) -> tuple[Evaluation, list[np.ndarray]]:
    config = EnvConfig(env=env, time_limit=8)
    evaluator = Evaluator(
        lambda: make_env(config, num_envs=3, seed=1, renders=films > 0), FakePolicy(env_spec(config)), films=films
    )
    return evaluator.evaluate(), evaluator.films


def test_films_show_whole_episodes_and_change_no_number() -> None:
    result, films = evaluate("toy:pixel", films=2)
    assert [film.shape for film in films] == [(9, 64, 64, 3)] * 2, "the first row, then one frame per decision"
    assert (films[0] != films[1]).any(), "each env has its own film"
    again, none = evaluate("toy:pixel", films=0)
    assert again == result
    assert none == []


def test_env_without_pictures_is_evaluated_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result, films = evaluate("toy:point", films=1)
    assert len(result.returns) == 3
    assert films == []
    assert "no film of env toy:point" in caplog.text


def test_env_of_state_is_filmed_by_what_it_renders() -> None:
    class Drawing(LocalVectorEnv):
        def render(self, index: int) -> np.ndarray:
            return np.full((600, 300, 3), index + 1, np.uint8)

    config = EnvConfig(env="toy:point", time_limit=3).resolved()
    env = Drawing(lambda: build_env(config), 2, 0)
    recorder = Recorder(env, 2)
    row = env.reset()
    for _ in range(6):
        recorder.see(row)
        row = env.step({"action": np.zeros((2, 2), np.float32)})
    env.close()
    assert [film.shape for film in recorder.films] == [(4, 200, 100, 3)] * 2, "one episode, made smaller"
    assert [int(film.max()) for film in recorder.films] == [1, 2]


def test_pictures_of_changing_size_take_the_size_of_the_first() -> None:
    class Growing(LocalVectorEnv):
        sizes = iter([(40, 60, 3), (20, 120, 3), (80, 30), (40, 60, 3)])

        def render(self, index: int) -> np.ndarray:
            return np.full(next(self.sizes), 7, np.uint8)

    config = EnvConfig(env="toy:point", time_limit=3).resolved()
    env = Growing(lambda: build_env(config), 1, 0)
    recorder = Recorder(env, 1)
    row = env.reset()
    for _ in range(4):
        recorder.see(row)
        row = env.step({"action": np.zeros((1, 2), np.float32)})
    env.close()
    (film,) = recorder.films
    assert (film.shape, film.min(), film.max()) == ((4, 40, 60, 3), 7, 7)


@pytest.mark.parametrize("shape", [(5,), (0, 4, 3), (2, 4, 4, 3)])
def test_what_is_no_picture_is_left_out_with_one_warning(shape: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    class Odd(LocalVectorEnv):
        def render(self, index: int) -> np.ndarray:
            return np.zeros(shape, np.uint8)

    config = EnvConfig(env="toy:point").resolved()
    env = Odd(lambda: build_env(config), 1, 0)
    recorder = Recorder(env, 1)
    row = env.reset()
    with caplog.at_level(logging.WARNING):
        recorder.see(row)
        recorder.see(row)
    env.close()
    assert recorder.films == []
    assert caplog.text.count("a picture must be [Y, X] or [Y, X, channels]") == 1


def test_film_that_cannot_be_written_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    film = np.zeros((3, 32, 32, 3), np.uint8)
    paths = write_films([film, film], tmp_path / "videos", "eval-000000100")
    assert [path.stem for path in paths] == ["eval-000000100-0", "eval-000000100-1"]
    assert all(path.stat().st_size for path in paths)
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert write_films([film], tmp_path / "file", "eval") == []
    assert "could not be written" in caplog.text
    assert write_films([np.zeros((3, 32, 32, 5))], tmp_path, "eval") == [], "whatever the encoder raises"
