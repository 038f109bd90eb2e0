"""Kill a learner in the middle of what it does, or let a capture fail. Python imports this module
at its start when its folder is on ``PYTHONPATH``.

``WORLDLOOM_KILL_AT`` names a folder; a file ``checkpoint``, ``publish`` or ``sample`` in it kills
the process that comes to that place next, and the file is gone then. With a file ``capture``,
updates fail as one that could not be captured does, unless ``learner.compile`` is off.
"""

import os
import signal
from pathlib import Path

from tests.integration.patching import patch_when_imported


def die_if_asked(place):
    try:
        (Path(os.environ["WORLDLOOM_KILL_AT"]) / place).unlink()
    except (KeyError, FileNotFoundError):
        return
    os.kill(os.getpid(), signal.SIGKILL)


def after_the_tensors(module):
    """The tensors of a checkpoint are written; its manifest and its final name are not."""
    real = module.save_file

    def save_file(*args, **kwargs):
        real(*args, **kwargs)
        die_if_asked("checkpoint")

    module.save_file = save_file


def while_weights_are_sent(module):
    """The weight store has been told of a version, and may not have fetched it."""
    real = module.RemoteWeights.publish

    def publish(self, snapshot):
        real(self, snapshot)
        die_if_asked("publish")

    module.RemoteWeights.publish = publish


def after_the_coordinator_has_agreed(module):
    """Windows are booked as trained; no shard has been asked for them."""
    real = module.BatchPrefetcher.collect

    def collect(self, *permitted):
        die_if_asked("sample")
        return real(self, *permitted)

    module.BatchPrefetcher.collect = collect


def in_a_capture(module):
    """As on a GPU whose driver refuses; here the refusal comes with the fifth update."""
    real = module.make_step

    def make_step(agent, device, mode, **more):
        step = real(agent, device, mode, **more)
        made = []

        def captured(batch):
            made.append(batch)
            if len(made) > 4 and (Path(os.environ["WORLDLOOM_KILL_AT"]) / "capture").exists():
                raise module.CaptureFailedError("an update could not be captured (for a test)")
            return step(batch)

        return step if mode == "off" else captured

    module.make_step = make_step


patch_when_imported(
    {
        "worldloom_dist.learner.step": in_a_capture,
        "worldloom.training.tree_files": after_the_tensors,
        "worldloom_dist.runtime.weight_roles": while_weights_are_sent,
        "worldloom_dist.runtime.prefetcher": after_the_coordinator_has_agreed,
    }
)
