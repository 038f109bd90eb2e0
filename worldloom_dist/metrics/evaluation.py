"""An evaluation as metrics, and what of it people should be warned of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from worldloom.core.metrics import Last, MetricMap
from worldloom_dist.metrics.names import key_of

__all__ = ["eval_metrics", "eval_warnings"]

SINGLE = (
    "reward_bias",
    "continue_gap",
    "value_bias",
    "value_error",
    "value_correlation",
    "action_coverage",
    "action_saturation",
)
"""Facts of a model that are one number."""


def eval_metrics(result: Mapping[str, Any]) -> MetricMap:
    """An evaluation as gauges."""
    values: MetricMap = {"eval_return_mean": Last(result["return_mean"])}
    if "return_std" in result:
        values["eval_return_std"] = Last(result["return_std"])
    if result.get("lengths"):
        values["episode_length_steps_mean{split=eval}"] = Last(
            sum(result["lengths"]) / len(result["lengths"])
        )
    if result.get("returns"):
        returns = result["returns"]
        edges = {"mean": result["return_mean"], "min": min(returns), "max": max(returns)}
        values |= {
            f"episode_return_{edge}{{split=eval}}": Last(value) for edge, value in edges.items()
        }
    if "score" in result:
        values["eval_score"] = Last(result["score"])
    for task, part in (result.get("tasks") or {}).items():
        mean = Last(part["return_mean"])
        values[key_of("task_return_mean", split="eval", task=task)] = mean
        if "score" in part:
            values[key_of("task_score", task=task)] = Last(part["score"])
    if "success_ratio" in result:
        values["eval_success_ratio"] = Last(result["success_ratio"])
    values |= _model_metrics(result.get("model") or {})
    if "time" in result:
        values["eval_last_timestamp_seconds"] = Last(result["time"])
    return values


def _model_metrics(facts: Mapping[str, Any]) -> MetricMap:
    """What the model says of the episodes, as gauges."""
    values: MetricMap = {
        key_of("model_error", of=what, horizon=horizon): Last(error)
        for what, errors in facts.get("error", {}).items()
        for horizon, error in errors.items()
    }
    values |= {
        key_of("model_disagreement", horizon=horizon): Last(found)
        for horizon, found in facts.get("disagreement", {}).items()
    }
    return values | {f"model_{name}": Last(facts[name]) for name in SINGLE if name in facts}


def eval_warnings(result: Mapping[str, Any], max_steps: int) -> Iterator[str]:
    """One sentence for each thing that makes an evaluation less than it seems.

    Args:
        result: As in ``summary.json``.
        max_steps: Decisions after which episodes were cut.
    """
    for env, why in result.get("lost_envs", {}).items():
        yield f"env {env} failed too often, others played its episodes ({why})"
    if result.get("cut_episodes"):
        yield (
            f"{result['cut_episodes']} of {result['episodes']} episodes had no end "
            f"within {max_steps} decisions "
            "and were cut there, as if truncated (--eval-max-steps)"
        )
    model = result.get("model") or {}
    for task, facts in {"": model, **model.get("tasks", {})}.items():
        if odd := facts.get("not_finite"):
            where = f" in task {task}" if task else ""
            yield f"the model predicts numbers that are not finite{where}: {', '.join(odd)}"
    if not math.isfinite(result["return_mean"]):
        yield (
            f"the mean return is {result['return_mean']}: the env's rewards, or their "
            "sum, are not finite"
        )
