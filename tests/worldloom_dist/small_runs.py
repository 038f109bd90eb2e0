"""Runs of the lock-step runtime that take a second."""

from tests.worldloom_dist.local_runs import start as start_run
from worldloom_dist.run.loop import Run

SMALL = [
    "--preset",
    "debug",
    "--runtime",
    "local",
    "--agent.latent-dim",
    "16",
    "--agent.mlp-dim",
    "16",
    "--agent.encoder-dim",
    "16",
    "--agent.batch-size",
    "8",
    "--agent.prefill-agent-steps",
    "40",
    "--agent.num-samples",
    "8",
    "--agent.num-elites",
    "2",
    "--agent.num-policy-samples",
    "2",
    "--agent.iterations",
    "2",
    "--train-ratio",
    "6",
    "--learner.threads",
    "1",
    "--eval-episodes",
    "0",
    "--learner.checkpoint-every-steps",
    "60",
]
COUNTING = ["--env", "toy:counting", "--workers", "2", "--replay.shards", "2"]


def start(folder, *words) -> Run:
    return start_run(folder, *SMALL, *words)
