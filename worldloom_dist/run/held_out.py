"""The files of a run that are never trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worldloom.algorithms.registry import make_agent
from worldloom.core.exceptions import BufferError, ConfigurationError
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.imports import load_share, split_sources
from worldloom_dist.replay.shard import ReplayShard
from worldloom_dist.run.plan import Plan, role_seed

if TYPE_CHECKING:
    from worldloom_dist.learner.held_out import HeldOutLosses

__all__ = ["build_held_out"]


def build_held_out(plan: Plan, device: str) -> HeldOutLosses:
    """What measures losses on the files that are never trained on; they are kept in memory.

    Raises:
        ConfigurationError: If none of their episodes fills a window.
        CheckpointError: If a file is damaged.
    """
    from worldloom_dist.learner.held_out import HeldOutLosses  # which imports torch

    sampling = plan.spec.sampling
    rows = plan.config.replay.capacity_steps
    shard = ReplayShard(
        0, plan.columns, sampling, capacity_rows=rows, directory=None, durability="none"
    )
    for source in split_sources(plan.config.replay.held_out):
        load_share(shard, source, 1)
    request = SampleRequest(sampling.batch_size, (role_seed(plan, "sampling"), 0, 1))
    try:
        shard.sample(request)
    except BufferError as error:
        raise ConfigurationError(
            f"replay.held_out: no episode of {plan.config.replay.held_out} fills a window of "
            f"{sampling.length} rows; name a file with longer ones"
        ) from error
    return HeldOutLosses(
        lambda: make_agent(plan.agent, plan.env_spec, device=device, seed=role_seed(plan, "agent")),
        lambda: shard.sample(request),
        plan.config.learner.held_out_every,
        device,
    )
