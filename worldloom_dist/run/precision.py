"""``--agent.precision auto``: in which precision a run computes, chosen when it begins and kept for
all its life.

Everywhere else ``auto`` is bfloat16 on CUDA and float32 on a CPU. A run whose learner trains on the
CPU of this machine measures; what it finds takes the place of ``auto`` in its settings, so that
every role and every resume computes alike.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from worldloom.algorithms.registry import product_shapes
from worldloom.factory import cache_dir
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.machine import learner_has_gpu

__all__ = ["FIELD", "choose_precision", "keep_precision"]

FIELD = "precision"
AUTO = "auto"
MEMORY = "precision.json"


def choose_precision(config: RunConfig) -> tuple[RunConfig, str]:
    """The run with ``auto`` replaced by what was found, and one line that says why.

    Args:
        config: A new run. Unless its ``--agent.precision`` is ``auto``, nothing happens and the
            line is empty.
    """
    if config.agent_overrides.get(FIELD) != AUTO:
        return config, ""
    is_local = config.runtime == "local"
    if config.address is not None or learner_has_gpu(config.learner.device, is_local=is_local):
        return config, "bfloat16 on CUDA, float32 on a CPU (not measured: the learner is not here)"
    precision, why = _found(config)
    overrides = {**config.agent_overrides, FIELD: precision}
    return dataclasses.replace(config, agent_overrides=overrides), f"{precision}: {why}"


def keep_precision(config: RunConfig, before: RunConfig) -> RunConfig:
    """A run that goes on and is told ``auto`` again computes as before: it was chosen then.

    Args:
        config: As it shall go on.
        before: As it was begun.
    """
    if config.agent_overrides.get(FIELD) != AUTO:
        return config
    kept = {**config.agent_overrides}
    del kept[FIELD]
    if FIELD in before.agent_overrides:
        kept[FIELD] = before.agent_overrides[FIELD]
    return dataclasses.replace(config, agent_overrides=kept)


def _found(config: RunConfig) -> tuple[str, str]:
    from worldloom.nn.product_speed import has_half_products, product_speed

    if not has_half_products():
        return "float32", "this CPU has no instruction for products in bfloat16"
    shapes = product_shapes(config.agent_config())
    if not shapes:
        return "float32", f"agent {config.agent} does not say what it multiplies"
    memory: Path = cache_dir() / MEMORY
    speed = product_speed(shapes, memory)
    told = f"products in bfloat16 take {speed.share:.2f}x the time of float32 on this CPU"
    return speed.precision, f"{told} (measured, remembered in {memory})"
