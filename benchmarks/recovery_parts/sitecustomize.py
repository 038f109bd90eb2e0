"""Has every process of a run write down when it does its work for the first time. Python imports
this module at its start when its folder is on ``PYTHONPATH``.

``WORLDLOOM_MARKS`` names a folder; a file ``KIND-KEY`` in it holds the moment, in seconds of the
clock that all processes of a machine share.
"""

import os
import time
from pathlib import Path

from tests.integration.patching import patch_when_imported

seen = set()


def mark(kind, key=None):
    """Write down that this happened now, if it has not happened before in this process."""
    name = f"{kind}-{os.getpid() if key is None else key}"
    folder = os.environ.get("WORLDLOOM_MARKS")
    if folder is None or name in seen:
        return
    seen.add(name)
    path = Path(folder) / name
    path.with_suffix(".tmp").write_text(str(time.monotonic()))
    path.with_suffix(".tmp").replace(path)


def after(owner, method, kind):
    """Mark the first call of a method that gives something."""
    real = getattr(owner, method)

    def called(self, *args, **kwargs):
        result = real(self, *args, **kwargs)
        if result or result is None:
            mark(kind)
        return result

    setattr(owner, method, called)


def learner(module):
    """It has made an update."""
    after(module.Learner, "train", "learner")


def coordinator(module):
    """It has permitted steps or a batch."""
    after(module.ReplayCoordinator, "try_make", "coordinator")
    after(module.ReplayCoordinator, "try_sample", "coordinator")


def shard(module):
    """It has stored a chunk, and the worker that made it is at work."""
    real = module.ReplayShard.append

    def append(self, chunk):
        is_new = real(self, chunk)
        mark("shard")
        mark("worker", f"{chunk.stream.slot}.{chunk.stream.incarnation}")
        return is_new

    module.ReplayShard.append = append


def inference(module):
    """It has decided for a batch."""
    after(module.InferenceServer, "act_batch", "inference")


def hub(module):
    """It has taken the numbers of a role."""
    after(module.MetricsHub, "emit", "hub")


patch_when_imported(
    {
        "worldloom_dist.learner.learner": learner,
        "worldloom_dist.replay.coordinator": coordinator,
        "worldloom_dist.replay.shard": shard,
        "worldloom_dist.actors.inference": inference,
        "worldloom_dist.metrics.hub": hub,
    }
)
