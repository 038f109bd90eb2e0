"""Planning against the authors' code, with their random draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden_support import assert_agrees
from tests.worldloom.algorithms.tdmpc2.golden_table import (
    DISCOUNT,
    FORWARD,
    MAX_STD,
    MIN_STD,
    PLANNING,
    TEMPERATURE,
    VARIANTS,
    golden,
    model_of,
    official_file,
    tensor,
)
from worldloom.algorithms.tdmpc2.draws import PlanDraws
from worldloom.algorithms.tdmpc2.networks import TDMPC2Networks
from worldloom.algorithms.tdmpc2.planner import PlanIteration, PlannerSettings, plan

pytestmark = pytest.mark.golden

SETTINGS = PlannerSettings(min_std=MIN_STD, max_std=MAX_STD, temperature=TEMPERATURE)


def calls(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The recorded calls of one file."""
    prefixes = sorted({key.partition("/")[0] for key in arrays})
    return [
        {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(p + "/")}
        for p in prefixes
    ]


def draws_of(call: dict[str, np.ndarray]) -> PlanDraws:
    noise = call.get("rng_action_noise", np.zeros_like(call["out_action"]))
    names = ("rng_eps_pi_trajs", "rng_r", "rng_eps_terminal_pi")
    first = [tensor(call[name]).unsqueeze(0) for name in names]
    pairs = tensor(call["rng_qidx_terminal"]).long().unsqueeze(0)
    return PlanDraws(
        *first,
        pairs,
        tensor(call["rng_gumbel_exponential"]).unsqueeze(0),
        tensor(noise).unsqueeze(0),
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_iteration_agrees_with_the_authors_code(variant: str) -> None:
    arrays = golden(f"plan_{variant}.npz")
    model = model_of(variant).model
    discounts = golden("mt_meta.npz")["discount"] if variant == "mt" else None
    for call in calls(arrays):
        index = tensor(call["in_task"]).long().reshape(1) if "in_task" in call else None
        with torch.no_grad():
            task = model.embed(index)
            mask = model.mask(index)
            z = model.encode({"obs": tensor(call["in_obs"]).unsqueeze(0)}, task)
        previous = tensor(call["in_prev_mean"]).unsqueeze(0) * (not bool(call["in_t0"]))
        mean = torch.cat([previous[:, 1:], torch.zeros_like(previous[:, :1])], 1)
        discount = (
            DISCOUNT if discounts is None or index is None else tensor(discounts)[index].float()
        )
        seen: list[PlanIteration] = []
        result = plan(
            model,
            z,
            mean,
            draws_of(call),
            SETTINGS,
            discount,
            explore=not bool(call["in_eval_mode"]),
            task=task,
            mask=mask,
            watch=seen.append,
        )
        assert len(seen) == len(call["mid_values"])
        for i, found in enumerate(seen):
            assert_agrees(
                found.actions[0], call["mid_actions"][i], tolerance=PLANNING, name=f"actions {i}"
            )
            assert_agrees(
                found.value[0].unsqueeze(-1),
                call["mid_values"][i],
                tolerance=FORWARD,
                name=f"values {i}",
            )
            np.testing.assert_array_equal(found.elites[0], call["mid_elite_idxs"][i])
            assert_agrees(
                found.weight[0], call["mid_score"][i], tolerance=PLANNING, name=f"score {i}"
            )
            assert_agrees(found.mean[0], call["mid_mean"][i], tolerance=PLANNING, name=f"mean {i}")
            assert_agrees(found.std[0], call["mid_std"][i], tolerance=PLANNING, name=f"std {i}")
        assert int(result.choice) == int(call["mid_selected_elite"])
        assert_agrees(result.mean[0], call["out_mean"], tolerance=PLANNING, name="mean")
        assert_agrees(result.std[0], call["out_std"], tolerance=PLANNING, name="std")
        assert_agrees(result.action[0], call["out_action"], tolerance=PLANNING, name="action")


@pytest.mark.parametrize(
    "file", ["model_episodic.pt", "ckpt_oldformat_single.pt", "ckpt_prerelease_single_synthetic.pt"]
)
def test_an_official_file_saved_and_loaded_again_plans_identically(
    file: str, tmp_path: Path
) -> None:
    call = calls(golden("plan_single.npz"))[0]
    model = official_file(file).model
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = TDMPC2Networks(model.architecture)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    obs = {"obs": tensor(call["in_obs"]).unsqueeze(0)}
    mean = torch.zeros(1, *call["in_prev_mean"].shape)
    plans = []
    for each in (model, again):
        with torch.no_grad():
            z = each.encode(obs)
        plans.append(plan(each, z, mean, draws_of(call), SETTINGS, DISCOUNT, explore=True))
    assert all(torch.equal(one, other) for one, other in zip(*plans, strict=True))
