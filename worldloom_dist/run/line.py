"""The line of progress that a run prints every ten seconds."""

from __future__ import annotations

from worldloom_dist.run.view import View

__all__ = ["progress_line"]


def progress_line(view: View, batch_positions: int) -> str:
    """How far a run is, on one line.

    Args:
        view: The run now.
        batch_positions: Trained positions of one update.
    """
    if view.is_offline:
        losses = ", ".join(f"{name} {loss:.3g}" for name, loss in view.losses.items())
        parts = [
            f"updates {view.train_steps:,}/{view.target_updates:,}",
            f"{view.updates_per_s:.3g} upd/s",
            f"losses {losses}" if losses else "",
        ]
        return " | ".join(part for part in parts if part)
    train = view.train_return
    shown = f"return {train:.1f}" if train is not None else "return -"
    if view.evaluation:
        score = view.evaluation.get("score")
        scored = "" if score is None else f", score {score:.1f}"
        shown += f" (eval {view.evaluation['return_mean']:.1f}{scored})"
    ratio = ""
    if view.train_ratio > 0:
        per_step = view.train_ratio / batch_positions
        ratio = f"updates/step {per_step:.3g} (target {view.target_ratio / batch_positions:.3g})"
    restarts = sum(view.restarts.values())
    parts = [
        f"env_steps {view.env_steps:,}/{view.target:,}",
        shown,
        f"{view.env_steps_per_s:.0f} env/s {view.updates_per_s:.0f} upd/s",
        ratio,
        f"replay {view.stored:,}",
        f"lag {view.lag:.0f}" if view.lag is not None else "",
        f"restarts {restarts}" if restarts else "",
        view.phase,
    ]
    return " | ".join(part for part in parts if part)
