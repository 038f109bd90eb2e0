"""One torch thread per test process: the tests are many small computations, and two cores are
shared with Ray's processes.
"""

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
if "WORLDLOOM_TEST_STATE" not in os.environ:  # the user's key is of no concern to a test
    os.environ["WORLDLOOM_TEST_STATE"] = tempfile.mkdtemp(prefix="worldloom-state-")
    os.environ["XDG_STATE_HOME"] = os.environ["WORLDLOOM_TEST_STATE"]
    atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_log_handler_outlives_its_test() -> Iterator[None]:
    """A command or a role that a test makes in this process sets up logging as it does in
    its own.
    """
    loggers = [logging.getLogger(name) for name in (None, "worldloom", "worldloom_dist")]
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, known in zip(loggers, before, strict=True):
        for handler in list(logger.handlers):
            if handler not in known and not type(handler).__module__.startswith("_pytest"):
                logger.removeHandler(handler)
                handler.close()
