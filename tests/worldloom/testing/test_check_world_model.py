from pathlib import Path

import pytest
import torch

from worldloom import LatentState, create_world_model
from worldloom.testing import ContractError, check_world_model


@pytest.mark.parametrize("name", ["dreamerv3:ci", "tdmpc2:ci", "mlp:ci"])
def test_our_models_keep_the_contract(name: str, tmp_path: Path) -> None:
    check_world_model(lambda: create_world_model(name, obs_shape=(4,), action_dim=2), tmp_path)


def test_a_broken_promise_is_named() -> None:
    model = create_world_model("mlp:ci", obs_shape=(4,), action_dim=2)
    model.predict = lambda state, action: LatentState(torch.zeros(3, 5))
    with pytest.raises(ContractError, match="predict gives features of the width"):
        check_world_model(lambda: model)
    with pytest.raises(ContractError, match="all methods"):
        check_world_model(lambda: torch.nn.Identity())
