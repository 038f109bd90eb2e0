"""A finished run, and a disk that fills up."""

import resource

import pytest

from tests.worldloom_dist.small_runs import COUNTING, start


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A lock-step run that ended; copy it before changing anything."""
    folder = tmp_path_factory.mktemp("replay") / "run"
    assert start(folder, *COUNTING, "--env-steps", "150").run() == "completed"
    return folder


@pytest.fixture
def limit_files():
    """No file of this process may grow beyond a size: the kernel then refuses to write, as a full
    disk does.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
