"""One torch thread per test process: the tests are many small computations, and two cores are
shared with Ray's processes.
"""

import logging
import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


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
