"""TensorBoard's tags: it folds what stands before the first ``/`` into one section, so that the
numbers of a run need sections that people look for.
"""

from __future__ import annotations

__all__ = ["SECTIONS", "tag_of"]

SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (title, tuple(starts.split()))
    for title, starts in (
        ("return", "episode_ eval_"),
        ("task", "task_"),
        ("loss", "loss"),
        ("speed", "env_steps_per_s updates_per_s"),
        (
            "progress",
            "agent_steps env_steps episodes train_steps learner_updates learner_replayed "
            "replay_ratio",
        ),
        ("agent", "grad_norm learning_rate model_ policy_entropy value_mean return_scale"),
        ("learner", "learner_ sample_ sampled_"),
        ("weights", "weights_ policy_"),
        ("replay", "replay_ rate_limiter_ queue_"),
        ("acting", "actor_ env_ envs_ inference_ planner_ carry_ worker"),
        ("gateway", "gateway_"),
        ("checkpoints", "checkpoint_"),
        (
            "machine",
            "gpu_ process_ node_ object_store_ disk_ transfer_ rpc_ heartbeat_ build_info run_info",
        ),
    )
)
"""Section -> how names in it begin; the first that fits counts."""
OTHER = "other"


def tag_of(path: str) -> str:
    """A number's path with its section before it: ``episode_return_mean/train`` ->
    ``return/episode_return_mean/train``; what is in a section of its name stays, as ``loss/total``.
    """
    name = path.partition("/")[0]
    section = next((title for title, starts in SECTIONS if name.startswith(starts)), OTHER)
    return path if name == section else f"{section}/{path}"
