"""The binding resource follows from where the seconds went, and the advice has the right
numbers.
"""

import dataclasses

import pytest

from worldloom_dist.run.bottleneck import Use, diagnose


def use(learner: dict, actors: dict, refused: float = 0.0, workers: int = 64) -> Use:
    return Use(
        seconds=60.0, learner=learner, actors=actors, samples_refused=refused, workers=workers
    )


BUSY = {"forward_backward": 57.0, "publish": 1.2, "wait_data": 1.8}
STARVED = {"forward_backward": 15.0, "wait_data": 45.0}


def test_a_busy_learner_binds_and_idle_workers_are_counted():
    found = diagnose(use(BUSY, {"env": 100.0, "blocked": 1900.0}))
    assert (found.resource, round(found.share, 2)) == ("learner", 0.97)
    assert str(found) == (
        "learner-bound at 97%: 4 of 64 workers would suffice; a smaller --agent, a lower "
        "--train-ratio or a GPU makes it faster"
    )
    on_gpu = dataclasses.replace(use(BUSY, {"env": 100.0}), has_gpu=True)
    assert "or more --learners makes" in diagnose(on_gpu).advice
    assert "suffice" not in diagnose(use(BUSY, {"env": 100.0})).advice


@pytest.mark.parametrize(
    ("actors", "refused", "resource", "said"),
    [
        ({"env": 900.0, "inference": 100.0}, 44.0, "envs", "about 256 --workers"),
        ({"env": 100.0, "inference": 900.0}, 44.0, "inference", "--inference-servers"),
        ({"env": 900.0}, 3.0, "sampling", "--replay.shards"),
        ({"env": 500.0, "blocked": 500.0}, 44.0, "limiter", "--replay.band-steps"),
    ],
)
def test_a_starving_learner_waits_for_the_one_who_is_late(actors, refused, resource, said):
    found = diagnose(use(STARVED, actors, refused))
    assert found.resource == resource
    assert said in found.advice


def test_before_the_first_update_nothing_is_claimed():
    assert diagnose(use({}, {"env": 5.0})).resource == "unknown"


def test_a_run_whose_steps_come_from_clients_is_not_told_of_a_number_of_workers():
    found = diagnose(use(STARVED, {}, refused=44.0, workers=0))
    assert found.resource == "envs"
    assert "0 --workers" not in found.advice
    assert found.advice.endswith(
        "it has no workers: more clients of the gateway, or --workers, would keep it busy"
    )
