"""Runs of each agent that take less than a second, words for
``tests.worldloom_dist.local_runs.start``.
"""

TINY = {
    "tdmpc2:ci": (
        "--preset debug --runtime local --agent.latent-dim 16 --agent.mlp-dim 16 "
        "--agent.encoder-dim 16 --agent.batch-size 4 "
        "--agent.prefill-agent-steps 12 --agent.num-samples 4 --agent.num-elites 2 "
        "--agent.num-policy-samples 2 "
        "--agent.iterations 1 --train-ratio 2 --learner.threads 1 --eval-episodes 0 "
        "--learner.report-every-steps 0"
    ).split(),
    "dreamerv3:ci": (
        "--preset debug --runtime local --agent dreamerv3:ci --agent.deter 16 "
        "--agent.hidden 8 --agent.units 8 --agent.stoch 4 "
        "--agent.classes 4 --agent.depth 2 --agent.bins 41 --agent.batch-size 2 "
        "--agent.batch-length 6 --agent.imagine-length 3 "
        "--agent.warmup 2 --agent.report-length 4 --train-ratio 2 --learner.threads "
        "1 --eval-episodes 0 "
        "--learner.report-every-steps 0"
    ).split(),
    "r2dreamer:ci": (
        "--preset debug --runtime local --agent r2dreamer:ci --agent.deter 16 "
        "--agent.hidden 8 --agent.units 8 --agent.stoch 4 "
        "--agent.classes 4 --agent.depth 2 --agent.bins 41 --agent.batch-size 2 "
        "--agent.batch-length 6 --agent.imagine-length 3 "
        "--agent.warmup 2 --train-ratio 2 --learner.threads 1 --eval-episodes 0 "
        "--learner.report-every-steps 0"
    ).split(),
    "mlp:ci": (
        "--preset debug --runtime local --agent mlp:ci --agent.latent-dim 8 "
        "--agent.hidden-dim 16 --agent.policy-dim 8 --agent.bins 21 --agent.batch-size 4 "
        "--agent.batch-length 2 --agent.horizon 2 --agent.conv-depth 1 "
        "--agent.prefill-agent-steps 12 --agent.pretrain-updates 2 --train-ratio 2 "
        "--learner.threads 1 --eval-episodes 0 --learner.report-every-steps 0"
    ).split(),
}
