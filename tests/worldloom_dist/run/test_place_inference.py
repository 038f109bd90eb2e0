import dataclasses

import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.config import EnvConfig
from worldloom_dist.run import plan as plan_module
from worldloom_dist.run.builders import measure_act_costs
from worldloom_dist.run.config import LearnerConfig
from worldloom_dist.run.plan import (
    ActCosts,
    Plan,
    group_sizes,
    inference_question,
    known_inference,
    needs_measuring,
    place_inference,
    resolve,
)
from worldloom_dist.run.presets import PRESETS


def plan_of(**changes: object) -> Plan:
    return resolve(
        dataclasses.replace(PRESETS["debug"](), **{"workers": 4, "envs_per_worker": 2, **changes})
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(("local_s", "where"), [(0.010, "central"), (0.001, "local")])
def test_policy_goes_where_a_decision_was_measured_to_be_cheaper(
    local_s: float, where: str
) -> None:
    plan = plan_of()
    assert needs_measuring(plan)
    chosen, why = place_inference(plan, ActCosts(local_s=local_s, central_s=0.016, central_rows=8))
    assert chosen == where
    assert f"{1e3 * local_s / 2:.2f} ms in its worker, and 2.50 ms in batches of 8" in why


def test_what_needs_no_measurement_is_not_measured() -> None:
    for plan, where in (
        (plan_of(workers=1, envs_per_worker=1), "local"),
        (plan_of(runtime="local"), "local"),
        (plan_of(inference="central"), "central"),
        (plan_of(workers=1_000_000), "central"),
    ):
        assert not needs_measuring(plan)
        assert plan.inference == where


@pytest.mark.parametrize(
    ("device", "has_driver", "may"),
    [("auto", True, True), ("auto", False, False), ("cuda", False, True), ("cpu", True, False)],
)
def test_one_env_decides_on_a_gpu_where_that_was_measured_to_be_cheaper(
    monkeypatch: pytest.MonkeyPatch, device: str, has_driver: bool, may: bool
) -> None:
    """Nothing is batched then, but a planner of five million weights takes a CPU a tenth of a
    second.
    """
    monkeypatch.setattr(plan_module, "has_gpu_driver", lambda: has_driver)
    plan = plan_of(workers=1, envs_per_worker=1, learner=LearnerConfig(device=device))
    assert needs_measuring(plan) == may
    slow, fast = (
        place_inference(plan, ActCosts(local_s=local_s, central_s=0.006, central_rows=1))[0]
        for local_s in (0.1, 0.004)
    )
    assert (slow, fast) == (("central", "local") if may else ("local", "local"))


def test_measured_choice_is_kept_by_the_plan() -> None:
    plan = dataclasses.replace(plan_of(), measured_inference=("local", "measured"))
    assert plan.inference == "local"


def test_costs_are_measured_with_the_policy_itself() -> None:
    costs = measure_act_costs(plan_of(), "cpu")
    assert costs.central_rows == 8
    assert 0 < costs.local_s < 8 * costs.central_s


def test_envs_form_groups_only_where_actions_come_from_afar() -> None:
    assert group_sizes(plan_of(inference="central", envs_per_worker=5)) == [3, 2]
    assert group_sizes(plan_of(inference="central", envs_per_worker=1)) == [1]
    assert group_sizes(plan_of(inference="local", envs_per_worker=5)) == [5]


def test_vector_env_of_fixed_size_must_be_asked_for_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend("tests/worldloom_dist/actors")
    env = EnvConfig(env="counting_vectors:three")
    with pytest.raises(ConfigurationError, match="say --envs-per-worker 3"):
        plan_of(env=env, envs_per_worker=2)
    plan = plan_of(env=env, envs_per_worker=3, inference="central")
    assert group_sizes(plan) == [3], "it cannot be divided into groups"


def test_a_resume_does_not_measure_again_what_has_not_changed() -> None:
    plan = plan_of()
    measured = {"where": "local", "why": "measured: 1 ms", "question": inference_question(plan)}
    assert known_inference(plan_of(), measured) == ("local", "measured: 1 ms")
    assert known_inference(plan_of(env_steps=10_000), measured) is not None
    for changes in ({"workers": 5}, {"envs_per_worker": 3}, {"inference_servers": 2}):
        assert known_inference(plan_of(**changes), measured) is None


@pytest.mark.parametrize(
    "earlier",
    [None, {}, "local", {"where": "local", "why": "measured"}, {"where": "moon"}, {"why": "asked"}],
)
def test_what_an_earlier_version_or_a_damaged_summary_says_is_measured_again(
    earlier: object,
) -> None:
    plan = plan_of()
    question = {"question": inference_question(plan)}
    assert known_inference(plan, earlier) is None
    if isinstance(earlier, dict) and earlier.get("where") != "local":
        assert known_inference(plan, {**earlier, **question}) is None
