"""Waiting in a test: until something holds, and never for ever."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: If it does not in time.
    """
    give_up = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"it did not happen within {timeout_s:.0f} s")
        time.sleep(0.001)
