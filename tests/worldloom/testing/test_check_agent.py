"""``check_agent`` passes our own agents in every kind of space, and names each broken promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tests.worldloom.algorithms.dreamerv3.dreamer_cases import TINY as TINY_DREAMER
from tests.worldloom.algorithms.mlp.tiny import TINY as TINY_MLP
from tests.worldloom.algorithms.r2dreamer.r2_cases import TINY as TINY_R2
from tests.worldloom.algorithms.tdmpc2.tiny import TINY as TINY_TDMPC2
from worldloom.algorithms.registry import make_agent_config
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.protocol import ActOutput, AgentSpec, SamplingSpec, TrainOutput
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.nn.snapshot import pack, unpack_into
from worldloom.testing import ContractError, check_agent
from worldloom.testing.no_waiting import no_waiting
from worldloom.testing.noise import random_batch

VECTOR = {"obs": ArraySpec((3,))}
IMAGE = {"camera": ArraySpec((64, 64, 3), "uint8"), "joints": ArraySpec((2,))}
BOX = {"action": ArraySpec((2,))}
CHOICE = {"action": ArraySpec((), "int64", (4,))}
MIXED = {"arm": ArraySpec((2,)), "button": ArraySpec((2,), "int64", (2, 3))}
TINY: Mapping[str, Mapping[str, Any]] = {
    "dreamerv3:ci": {**TINY_DREAMER, "imagine_length": 2, "batch_length": 4},
    "tdmpc2:ci": {**TINY_TDMPC2, "horizon": 2},
    "mlp:ci": TINY_MLP,
    "r2dreamer:ci": {**TINY_R2, "imagine_length": 2, "batch_length": 4},
}


@pytest.mark.parametrize(
    ("name", "obs", "action"),
    [
        ("dreamerv3:ci", VECTOR, BOX),
        ("dreamerv3:ci", VECTOR, CHOICE),
        ("dreamerv3:ci", IMAGE, MIXED),
        ("r2dreamer:ci", VECTOR, BOX),
        ("r2dreamer:ci", VECTOR, CHOICE),
        ("r2dreamer:ci", IMAGE, MIXED),
        ("tdmpc2:ci", VECTOR, BOX),
        ("tdmpc2:ci", IMAGE, BOX),
    ],
)
def test_our_agents_keep_the_contract(name: str, obs: Any, action: Any) -> None:
    config = make_agent_config(name, TINY[name])
    check_agent(config, EnvSpec(name="toy:check", obs=obs, action=action))


@pytest.mark.parametrize("bonus", [0.0, 0.5])
@pytest.mark.parametrize(
    ("acting", "obs", "action"),
    [
        *((acting, VECTOR, BOX) for acting in ("actor-critic", "cem", "random-shooting")),
        *(
            (acting, VECTOR, CHOICE)
            for acting in ("actor-critic", "cem", "random-shooting", "mcts")
        ),
        *((acting, IMAGE, MIXED) for acting in ("actor-critic", "cem")),
        ("mcts", IMAGE, CHOICE),
    ],
)
def test_every_way_in_which_mlp_acts_keeps_the_contract(
    acting: str, obs: Any, action: Any, bonus: float
) -> None:
    settings = {**TINY["mlp:ci"], "acting": acting, "uncertainty_bonus": bonus}
    config = make_agent_config("mlp:ci", settings)
    check_agent(config, EnvSpec(name="toy:check", obs=obs, action=action))


def test_a_name_that_does_not_exist_is_told() -> None:
    with pytest.raises(ConfigurationError, match="no such setting"):
        check_agent(make_agent_config("tdmpc2:ci", {"nothing": 1}))


class Toy:
    """A linear policy with a running mean as carry, trained towards the reward; draws noise."""

    def __init__(self, env: EnvSpec, seed: int) -> None:
        sampling = SamplingSpec(batch_size=2, length=3)
        self.spec = AgentSpec(name="toy:x", sampling=sampling, train_ratio=1, prefill_agent_steps=0)
        self.env = env
        self.generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(3, 2, generator=self.generator)
        self.updates = torch.zeros(())

    def initial_carry(self, num_envs: int) -> dict[str, Any]:
        return {"mean": np.zeros((num_envs, 3), np.float32)}

    def noise(self, rows: int) -> torch.Tensor:
        return torch.randn(rows, 2, generator=self.generator)

    def start(self, carry: Any, is_first: np.ndarray) -> np.ndarray:
        return np.where(is_first[:, None], 0.0, carry["mean"]).astype(np.float32)

    def act(self, obs: Any, carry: Any, is_first: np.ndarray, *, explore: bool) -> ActOutput:
        mean = 0.5 * self.start(carry, is_first) + 0.5 * obs["obs"]
        action = torch.tanh(torch.from_numpy(mean) @ self.weight + 0.1 * self.noise(len(mean)))
        return ActOutput({"action": action.numpy()}, {"mean": mean})

    def target(self, batch: Any) -> torch.Tensor:
        return batch.reward * (~batch.terminated).float()

    def train_step(self, batch: Any) -> TrainOutput:
        error = (batch.obs["obs"] @ self.weight).mean() - self.target(batch).mean()
        error = error + 0.01 * self.noise(1).mean()
        accept = torch.isfinite(error)
        self.weight.sub_(torch.where(accept, 0.1 * error, 0.0))
        self.updates.add_(1)
        return TrainOutput({"error": error * self.updates}, (~accept).float())

    def join(self, ranks: Any) -> None:
        """One rank only."""

    def policy_weights(self) -> Any:
        return pack({"weight": self.weight})

    def load_weights(self, snapshot: Any) -> None:
        unpack_into(snapshot, {"weight": self.weight})

    def rng_state(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_rng_state(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "weight": self.weight.clone(),
            "updates": self.updates.clone(),
            "rng": self.rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weight.copy_(state["weight"])
        self.updates.copy_(state.get("updates", self.updates))
        self.load_rng_state(state["rng"])


def test_a_good_agent_of_ones_own_passes() -> None:
    check_agent(Toy)


class WithAdam(Toy):
    """torch's optimizers read a step counter that they keep on the host."""

    def __init__(self, env: EnvSpec, seed: int) -> None:
        super().__init__(env, seed)
        self.weight.requires_grad_()
        self.adam = torch.optim.Adam([self.weight], lr=1e-3)

    def train_step(self, batch: Any) -> TrainOutput:
        error = (batch.obs["obs"] @ self.weight).square().mean()
        self.adam.zero_grad()
        error.backward()
        self.adam.step()
        return TrainOutput({"error": error.detach()})


def test_an_optimizer_of_torch_may_read_its_own_counter() -> None:
    agent = WithAdam(EnvSpec(name="toy:x", obs=VECTOR, action=BOX), 1)
    batch = random_batch(agent.spec, agent.env, 1, "cpu", {})
    agent.train_step(batch)
    with no_waiting():
        agent.train_step(batch)


def test_the_line_that_waits_is_named() -> None:
    with pytest.raises(ContractError, match=r"asked for at test_check_agent.py:\d+"), no_waiting():
        float(torch.ones(()))


class WrongShape(Toy):
    def act(self, *args: Any, **how: Any) -> ActOutput:
        out = super().act(*args, **how)
        return ActOutput({"action": out.action["action"][:, :1]}, out.carry)


class WrongDtype(Toy):
    def act(self, *args: Any, **how: Any) -> ActOutput:
        out = super().act(*args, **how)
        return ActOutput({"action": out.action["action"].astype("float64")}, out.carry)


class OutOfRange(Toy):
    def act(self, *args: Any, **how: Any) -> ActOutput:
        out = super().act(*args, **how)
        return ActOutput({"action": out.action["action"] + 3}, out.carry)


class WritesCarry(Toy):
    def start(self, carry: Any, is_first: np.ndarray) -> np.ndarray:
        carry["mean"][is_first] = 0.0
        return carry["mean"]


class NeverResets(Toy):
    def start(self, carry: Any, is_first: np.ndarray) -> np.ndarray:
        return carry["mean"]


class ResetsAll(Toy):
    def start(self, carry: Any, is_first: np.ndarray) -> np.ndarray:
        return carry["mean"] * (not is_first.any())


class ResetsOnlyTogether(Toy):
    def start(self, carry: Any, is_first: np.ndarray) -> np.ndarray:
        return carry["mean"] * (not is_first.all())


class GlobalNoise(Toy):
    def noise(self, rows: int) -> torch.Tensor:
        return torch.randn(rows, 2)


class Waits(Toy):
    def target(self, batch: Any) -> torch.Tensor:
        return batch.reward * float(batch.reward.max() > -9)


class CopiesToHost(Toy):
    def target(self, batch: Any) -> torch.Tensor:
        return torch.from_numpy(batch.reward.cpu().numpy()) * (~batch.terminated).float()


class IgnoresTerminated(Toy):
    def target(self, batch: Any) -> torch.Tensor:
        return batch.reward


class ForgetsUpdates(Toy):
    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name != "updates"}


class ForgetsNoise(Toy):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weight.copy_(state["weight"])
        self.updates.copy_(state["updates"])


class SharesState(Toy):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"weight": self.weight}


class SavesObjects(Toy):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"generator": self.generator}


class TakesNaN(Toy):
    def train_step(self, batch: Any) -> TrainOutput:
        out = super().train_step(batch)
        return TrainOutput(out.metrics, torch.zeros(()))


class NeverLearns(Toy):
    def train_step(self, batch: Any) -> TrainOutput:
        return TrainOutput({})


class VectorMetric(Toy):
    def train_step(self, batch: Any) -> TrainOutput:
        out = super().train_step(batch)
        return TrainOutput({"error": torch.zeros(3)}, out.nonfinite)


class PromisesPriorities(Toy):
    def __init__(self, env: EnvSpec, seed: int) -> None:
        super().__init__(env, seed)
        self.spec = AgentSpec(
            name="toy:x",
            sampling=self.spec.sampling,
            train_ratio=1,
            prefill_agent_steps=0,
            gives_priorities=True,
        )


class KeepsItsWeights(Toy):
    def load_weights(self, snapshot: Any) -> None:
        """Ignores them."""


class LacksReset(Toy):
    rng_state = None  # type: ignore[assignment]


BROKEN: list[tuple[Callable[..., Any], str]] = [
    (
        WrongShape,
        r"dtype of action 'action': expected \(\(3, 2\), 'float32'\), got \(\(3, 1\)",
    ),
    (WrongDtype, r"shape and dtype of action 'action': .* got \(\(3, 2\), 'float64'\)"),
    (OutOfRange, r"action 'action': expected numbers in \[-1, 1\], got"),
    (WritesCarry, r"carry after act, which may not write to it \(mean\)"),
    (NeverResets, "action of an env with is_first, against a fresh carry"),
    (ResetsOnlyTogether, "action of an env with is_first, against a fresh carry"),
    (ResetsAll, "action of envs without is_first beside one that has it"),
    (GlobalNoise, "action of equal seeds"),
    (Waits, "train_step: expected no wait for the device, got one .*_local_scalar_dense"),
    (CopiesToHost, r"train_step: expected no wait for the device, got one \(Tensor.cpu"),
    (IgnoresTerminated, "an update whose windows end with terminated: expected another one"),
    (ForgetsUpdates, r"metrics of an update after a resume \(error\)"),
    (ForgetsNoise, r"action after a resume \(action\)"),
    (SharesState, r"state_dict after further updates, a copy \(weight\)"),
    (SavesObjects, r"state_dict\['generator'\]: expected tensors.* got Generator"),
    (TakesNaN, "nonfinite of a batch with NaN: expected 1, got 0"),
    (NeverLearns, "weights of the policy after two updates: expected changed ones, got the same"),
    (VectorMetric, r"metric 'error': expected a scalar, got shape \(3,\)"),
    (PromisesPriorities, r"shape of priorities of train_step: expected \(2,\), got None"),
    (KeepsItsWeights, "action with loaded weights"),
    (LacksReset, "methods of the agent: .* got none named rng_state"),
]


@pytest.mark.parametrize(("make", "says"), BROKEN, ids=[make.__name__ for make, _ in BROKEN])
def test_a_broken_promise_is_named_in_one_sentence(make: Any, says: str) -> None:
    with pytest.raises(ContractError, match=says) as caught:
        check_agent(make)
    assert "\n" not in str(caught.value)
