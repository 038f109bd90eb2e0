"""A learner is killed again and again, and its standby goes on in its place: few updates are lost,
all of them are made again, and versions only rise.
"""

import json
import os
import signal

import pytest

from tests.integration.running import PATIENCE, check_counting, launched, read_journals, rows_of
from worldloom.core.specs import EnvSpec
from worldloom.training.checkpoints import CheckpointStore
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import resolve

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,
    pytest.mark.long,
    pytest.mark.timeout(400 * PATIENCE),
]

KILLS = 5
MOST_LOST = 60
"""Updates of one kill: a debug agent makes one in 5 ms, and its state is copied every few hundred
milliseconds on a machine that does much else.
"""


def learners(run) -> list[int]:
    """The learner, and its standby, which was started later."""
    return sorted(run.pids("ray::LearnerRole"))


def test_a_standby_goes_on_where_each_of_five_learners_was_killed(tmp_path):
    folder = tmp_path / "run"
    words = (
        "--preset debug --env toy:counting --workers 2 --env-steps 10000000 --train-ratio 12 "
        "--eval-episodes 0 --metrics-port 0 --learner.checkpoint-every-s 3600 "
        f"--learner.standby on --learner.device cpu --run-dir {folder}"
    ).split()
    plan = resolve(parse(words))
    versions = []
    with launched(folder, *words) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 60, 120)
        for kills in range(1, KILLS + 1):
            run.wait_until(
                lambda kills=kills: f"standby-{kills - 1} is ready" in run.output.read_text(), 120
            )
            known = learners(run)
            assert len(known) == 2
            before = run.summary()
            os.kill(known[0], signal.SIGKILL)
            run.wait_until(
                lambda kills=kills: run.summary()["policy_version"].startswith(f"{kills + 1}."), 60
            )
            made = run.summary()["train_steps"]
            run.wait_until(lambda made=made: run.summary()["train_steps"] > made, 60)
            summary = run.summary()
            assert summary["updates_lost"] - before["updates_lost"] <= MOST_LOST
            assert learners(run)[0] == known[1], "no new process was waited for"
            versions.append(tuple(map(int, summary["policy_version"].split("."))))
        run.process.send_signal(signal.SIGTERM)
        assert run.finish() == 0, run.output.read_text()
        summary = run.summary()
        text = run.output.read_text()
        assert run.leftovers() == []
    assert versions == sorted(versions)
    assert [incarnation for incarnation, _ in versions] == list(range(2, KILLS + 2))
    assert text.count("of its predecessor") == KILLS
    limits = plan.limits
    steps = summary["agent_steps"] - limits.prefill_agent_steps
    owed = limits.train_ratio * steps + limits.pretrain_positions - summary["replayed_steps"]
    assert -limits.slack_sample <= owed <= limits.slack_insert + limits.batch_positions
    newest = CheckpointStore(folder / "checkpoints").newest()
    assert newest[1]["learner"]["train_steps"] == summary["train_steps"]
    assert newest[1]["learner"]["incarnation"] == KILLS + 1
    env = EnvSpec.from_dict(json.loads((folder / "config.json").read_text())["env"])
    decisions = [check_counting(rows_of(chunks, env)) for chunks in read_journals(folder).values()]
    assert sum(decisions) == summary["agent_steps"]
    assert summary["rows"]["lost_acked"] == 0
