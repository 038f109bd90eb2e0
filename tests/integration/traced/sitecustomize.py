"""Say which files of ours a marked row passes through. Python imports this module at its start when
its folder is on ``PYTHONPATH``; ``WORLDLOOM_TRACE`` names the file that is written.
"""

import os
import sys
import time

from tests.row_path import Tracer

tracer = Tracer(report=os.environ["WORLDLOOM_TRACE"])
tracer.start()
monotonic = time.monotonic


def monotonic_in_a_watched_thread():
    """Threads that Ray makes in C++ are watched from the first time they ask for the time."""
    if sys.getprofile() is None:
        sys.setprofile(tracer)
    return monotonic()


time.monotonic = monotonic_in_a_watched_thread
