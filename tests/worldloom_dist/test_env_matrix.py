"""One tiny run of each agent through every spelling of observation, action, reward, end and
autoreset: exactly the env's rows.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.integration.running import check_counting, read_journals
from tests.worldloom.envs import odd_envs
from tests.worldloom_dist.actors import counting_vectors
from tests.worldloom_dist.local_runs import start
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.data.codec import decode_rows
from worldloom_dist.run.loop import Run


@pytest.fixture(autouse=True)
def _envs_are_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (odd_envs, counting_vectors):
        monkeypatch.syspath_prepend(str(Path(module.__file__).parent))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(folder: Path, agent: str, env: str, *words: str, steps: int = 64) -> tuple[Run, list[Any]]:
    """The run, and the rows of every env."""
    done = start(folder, *TINY[agent], "--env", env, "--env-steps", str(steps), *words)
    assert done.run() == "completed"
    assert done.runtime.learner.train_steps > 0
    streams = []
    for chunks in read_journals(folder).values():
        parts = [decode_rows(stored.chunk.payload, done.plan.columns) for stored in chunks]
        streams.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    return done, streams


def number_in(column: np.ndarray, *, is_one_hot: bool) -> np.ndarray:
    """[T] the number that each row of a column consists of."""
    flat = column.reshape(len(column), -1)
    if is_one_hot:
        return flat.argmax(1)
    assert (flat == flat[:, :1]).all(), "one number all over"
    return flat[:, 0]


@pytest.mark.parametrize(
    ("agent", "env"),
    [
        ("tdmpc2:ci", "moves"),
        ("dreamerv3:ci", "moves"),
        ("dreamerv3:ci", "choices"),
        ("r2dreamer:ci", "choices"),
        ("mlp:ci", "moves"),
        ("mlp:ci", "choices"),
    ],
)
def test_everything_in_every_unusual_way(agent: str, env: str, tmp_path: Path) -> None:
    done, (rows,) = run(tmp_path, agent, f"odd_envs:{env}")
    t = np.tile(np.arange(odd_envs.LENGTH + 1), 9)[: len(rows["reward"])]
    assert len(t) >= 64
    assert rows["reward"].tolist() == t.tolist()
    assert rows["is_first"].tolist() == (t == 0).tolist()
    assert not rows["terminated"].any()
    assert rows["truncated"].tolist() == (t == odd_envs.LENGTH).tolist()
    shapes = {
        key: rows[f"obs/{key}"].shape[1:]
        for key in ("first", "grey", "picture", "stack", "class", "classes", "half")
    }
    assert shapes == {
        "first": (48, 40, 3),
        "grey": (33, 34, 1),
        "picture": (48, 40, 3),
        "stack": (40, 48, 6),
        "class": (30,),
        "classes": (70,),
        "half": (1, 2),
    }
    assert "obs/none" not in rows
    for key in (
        "double",
        "first",
        "grey",
        "half",
        "inner/pair/0",
        "inner/pair/1",
        "picture",
        "stack",
    ):
        assert number_in(rows[f"obs/{key}"], is_one_hot=False).tolist() == t.tolist(), key
    assert number_in(rows["obs/bits"], is_one_hot=False).tolist() == (t % 2).tolist()
    assert number_in(rows["obs/class"], is_one_hot=True).tolist() == t.tolist()
    for half in (rows["obs/classes"][:, :30], rows["obs/classes"][:, 30:]):
        assert number_in(half, is_one_hot=True).tolist() == t.tolist()
    assert "action/none" not in rows
    assert done.report.quarantined == {}


MODES = [
    "next_step",
    "same_step",
    "disabled",
    "same_step_dict",
    "silent_next_step",
    "silent_same_step",
    "spelled_out",
]


@pytest.mark.parametrize("agent", TINY)
@pytest.mark.parametrize("mode", MODES)
def test_every_autoreset_gives_the_rows_of_the_envs(agent: str, mode: str, tmp_path: Path) -> None:
    _, streams = run(
        tmp_path, agent, f"counting_vectors:{mode}", "--envs-per-worker", "2", steps=96
    )
    assert len(streams) == 2
    for rows in streams:
        assert check_counting(rows) >= 40
