"""How long a run will take is measured, and said once."""

from dataclasses import dataclass

import pytest

from tests.worldloom_dist.local_runs import write_pendulum_rows
from worldloom_dist.run.cli import parse
from worldloom_dist.run.pace import Pace, prefill_share, total_updates
from worldloom_dist.run.plan import resolve


@dataclass
class Made:
    train_steps: int


WORDS = "--env toy:point --agent tdmpc2:ci --agent.prefill-agent-steps 500 --agent.batch-size 16"


def plan_of(words: str):
    return resolve(parse([*WORDS.split(), *words.split()]))


def test_all_updates_of_a_run_are_counted():
    plan = plan_of("--env-steps 2000 --train-ratio 24")
    owed = 1500 * 24 / plan.spec.sampling.trained_positions
    assert total_updates(plan) == plan.spec.pretrain_updates + int(owed)
    assert prefill_share(plan) == 0.25


def test_the_time_to_go_is_said_once_and_once_more_after_pretraining():
    plan = plan_of("--env-steps 2000")
    pretraining = plan.spec.pretrain_updates
    assert pretraining == 500
    pace = Pace(plan)
    said = {}
    for second in range(300):
        # two updates a second while pretraining, then four
        made = 2 * second if second < 250 else pretraining + 4 * (second - 250)
        if text := pace.look(float(second), Made(made)):
            said[second] = text
    assert sorted(said) == [11, 261]
    left = total_updates(plan) - 22
    assert f"{left:,} updates at 2 a second" in said[11]
    assert "prefill is 25% of the env steps" in said[11]
    assert "at 4 a second" in said[261]


def test_a_slow_machine_is_measured_by_few_updates():
    pace = Pace(plan_of("--env-steps 2000"))
    texts = [pace.look(float(second), Made(second // 40)) for second in range(130)]
    assert [index for index, text in enumerate(texts) if text] == [100]
    assert "at 0.025 a second, measured over 1" in texts[100]


@pytest.mark.parametrize("earlier", [0, 700])
def test_a_resumed_run_measures_only_its_own_updates(earlier: int):
    pace = Pace(plan_of("--env-steps 2000"))
    assert pace.look(0.0, Made(earlier)) is None
    assert pace.look(1000.0, Made(earlier)) is None, "nothing is trained yet"


def test_the_time_to_go_follows_the_updates_that_are_left():
    plan = plan_of("--env-steps 2000")
    pretraining = plan.spec.pretrain_updates
    pace = Pace(plan)
    left = {}
    for second in range(400):
        # nothing in the prefill, ten updates a second while pretraining, then two
        made = min(pretraining, max(0, 10 * (second - 20)))
        made = made + max(0, 2 * (second - 70))
        pace.look(float(second), Made(made))
        left[second] = pace.left_s(Made(made))
    assert left[20] is None
    assert left[25] is None, "too few seconds were measured"
    assert left[60] == pytest.approx((total_updates(plan) - 400) / 10)
    assert left[75] is None, "what came before says nothing"
    for second in (100, 140, 300):
        made = pretraining + 2 * (second - 70)
        assert left[second] == pytest.approx((total_updates(plan) - made) / 2, rel=0.05)
    assert pace.left_s(Made(total_updates(plan))) is None


def test_updates_before_the_first_step_say_nothing_of_those_after_it(tmp_path):
    rows = write_pendulum_rows(tmp_path / "rows.npz")
    words = WORDS.replace("toy:point", "gym:Pendulum-v1").split()
    offline = ["--replay.load", rows, "--offline-steps", "600", "--env-steps", "2000"]
    plan = resolve(parse([*words, *offline]))
    first = 600 + plan.spec.pretrain_updates
    pace = Pace(plan)
    left = {}
    for second in range(200):
        made = min(first, 20 * second) + max(0, 2 * (second - first // 20))
        pace.look(float(second), Made(made))
        left[second] = (pace.left_s(Made(made)), total_updates(plan) - made)
    at_once = first // 20
    assert left[at_once + 5][0] is None, "what came before says nothing"
    seconds, updates = left[at_once + 40]
    assert seconds == pytest.approx(updates / 2, rel=0.05)
