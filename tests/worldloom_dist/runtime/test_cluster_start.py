"""How a private cluster begins, and what is said where it does not. Ray is not started."""

import os
import stat
from pathlib import Path

import pytest
import ray

from worldloom.core.exceptions import TrainingError
from worldloom_dist.runtime.cluster import ray_cluster


@pytest.fixture
def tokens(monkeypatch):
    """Tokens of the clusters that were to be started."""
    found = []

    def refuse(**_):
        path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        found.append(path.read_text())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        raise Exception("The current node timed out during startup. Some raylet failed.")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    return found


def test_servers_that_do_not_start_in_time_are_one_sentence_and_leave_nothing(tokens):
    before = dict(os.environ)
    with pytest.raises(TrainingError) as caught, ray_cluster(None, "run"):
        pytest.fail("it did not start")
    sentence = str(caught.value)
    assert sentence.startswith("Ray did not start on this machine (The current node timed out")
    assert "--runtime local" in sentence
    assert "\n" not in sentence
    assert dict(os.environ) == before


def test_every_cluster_has_a_token_of_its_own(tokens):
    for _ in range(3):
        with pytest.raises(TrainingError), ray_cluster(None, "run"):
            pytest.fail("it did not start")
    assert len(set(tokens)) == 3
    assert min(map(len, tokens)) >= 32
