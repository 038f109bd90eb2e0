"""One torch thread per test process: the tests are many small computations, and two cores are shared with Ray's processes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
