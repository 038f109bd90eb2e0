"""An agent of your own keeps the contract of ``worldloom.core.protocol`` that workers, replay,
learner and checkpoints rely on.

Seen from outside only: what acting and training take and give, what equal seeds and a resume
repeat, what a reset forgets. Whether it learns is another question. Legend: N envs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from worldloom.algorithms.registry import AgentConfig, make_agent, make_agent_config
from worldloom.core.protocol import (
    ActOutput,
    Agent,
    AgentSpec,
    Carry,
    PredictsAhead,
    TrainOutput,
)
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.testing.contract import ContractError, expect
from worldloom.testing.no_waiting import no_waiting
from worldloom.testing.noise import random_batch, random_obs
from worldloom.testing.predictions import check_predictions
from worldloom.testing.trees import check_plain, check_same

__all__ = ["check_agent"]

N = 3
DEFAULT_ENV = EnvSpec(
    name="toy:check", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((2,))}
)
MakeAgent = Callable[[EnvSpec, int], Any]


def check_agent(
    agent: str | AgentConfig | MakeAgent,
    env: EnvSpec | None = None,
    *,
    device: str = "cpu",
    bootstraps: bool = True,
) -> None:
    """Try every promise of :class:`worldloom.core.protocol.Agent` that can be seen from outside.

    Args:
        agent: ``algorithm:preset``, a config, or ``make(env, seed)`` that builds an agent of your
            own; equal arguments must give equal agents.
        env: Spaces to try it in; by default three numbers to see and two to do.
        device: Where agents of a name or config are built.
        bootstraps: False for an agent that values nothing beyond the reward of a step, and so need
            not care where an episode terminated.

    Raises:
        ContractError: Names the first promise that is not kept, what was expected and what came.

    Example:
        >>> check_agent("tdmpc2:ci")
    """
    check = Check(_maker(agent, device), env or DEFAULT_ENV)
    check.run()
    if bootstraps:
        check.check_terminated()


def _maker(agent: str | AgentConfig | MakeAgent, device: str) -> MakeAgent:
    if callable(agent):
        return agent
    config = make_agent_config(agent) if isinstance(agent, str) else agent
    return lambda env, seed: make_agent(config, env, device=device, seed=seed)


class Check:
    """One agent in one env.

    Args:
        make: Builds it from env and seed.
        env: Its spaces.
    """

    def __init__(self, make: MakeAgent, env: EnvSpec) -> None:
        self.make = make
        self.env = env

    def run(self) -> None:
        """Every promise that any agent makes, the simplest first.

        Raises:
            ContractError: See :func:`check_agent`.
        """
        self.check_acting()
        self.check_training()
        self.check_no_waiting()
        self.check_seed()
        self.check_carry()
        self.check_weights()
        self.check_resume()
        self.check_nonfinite()
        self.check_optional()

    # -- what the checks do with an agent ----------------------------------------------------------

    def build(self, seed: int = 1) -> Any:
        """A new agent."""
        agent = self.make(self.env, seed)
        missing = [name for name in dir(Agent) if not name.startswith("_") and name != "spec"]
        missing = [name for name in missing if not callable(getattr(agent, name, None))]
        want = "all of worldloom.core.protocol.Agent"
        expect(not missing, "methods of the agent", want, f"none named {', '.join(missing)}")
        spec = getattr(agent, "spec", None)
        expect(isinstance(spec, AgentSpec), "agent.spec", "an AgentSpec", type(spec).__name__)
        return agent

    def act(
        self, agent: Any, carry: Carry, first: Any = False, seed: int = 0, *, explore: bool = True
    ) -> ActOutput:
        """One decision of N envs on noise."""
        is_first = np.broadcast_to(np.asarray(first), (N,)).copy()
        out: ActOutput = agent.act(random_obs(self.env, N, seed), carry, is_first, explore=explore)
        expect(isinstance(out, ActOutput), "act", "an ActOutput", type(out).__name__)
        return out

    def lived_carry(self, agent: Any) -> Carry:
        """The carry after some decisions."""
        carry: Carry = agent.initial_carry(N)
        for seed in range(3):
            carry = self.act(agent, carry, seed == 0, seed).carry
        return carry

    def batch(self, agent: Any, seed: int = 0, **how: Any) -> Any:
        """A batch of noise on the device of the agent's weights."""
        extras: Mapping[str, np.ndarray] = {}
        if agent.spec.extras:
            state = agent.rng_state()
            extras = self.act(agent, agent.initial_carry(N), True).extras
            agent.load_rng_state(state)
        place = getattr(agent, "device", "cpu")
        return random_batch(agent.spec, self.env, seed, place, extras, **how)

    def train(self, agent: Any, seed: int = 0, **how: Any) -> TrainOutput:
        """One update."""
        out: TrainOutput = agent.train_step(self.batch(agent, seed, **how))
        expect(isinstance(out, TrainOutput), "train_step", "a TrainOutput", type(out).__name__)
        return out

    # -- acting ------------------------------------------------------------------------------------

    def check_acting(self) -> None:
        """Shapes, dtypes and ranges of what ``act`` gives."""
        agent = self.build()
        for explore in (True, False):
            out = self.act(agent, agent.initial_carry(N), True, explore=explore)
            _check_group("action", out.action, self.env.action)
            _check_group("extras of act", out.extras, agent.spec.extras)
            for key, spec in self.env.action.items():
                _check_range(f"action {key!r}", out.action[key], spec)

    def check_carry(self) -> None:
        """The carry has the env axis first, is not written to, and is reset by ``is_first`` in each
        env alone.
        """
        agent = self.build()
        fresh = agent.initial_carry(N)
        carry = self.lived_carry(agent)
        expect(sorted(carry) == sorted(fresh), "keys of the carry", sorted(fresh), sorted(carry))
        for name, value in carry.items():
            shapes = (tuple(fresh[name].shape), tuple(value.shape))
            expect(shapes[0] == shapes[1], f"shape of carry {name!r}", *shapes)
            expect(len(value) == N, f"rows of carry {name!r}", N, len(value))
        state = agent.rng_state()
        before = copy.deepcopy(carry)
        first = np.arange(N) == 1
        ours = self.act(agent, carry, first, 7)
        check_same("carry after act, which may not write to it", before, carry)
        agent.load_rng_state(state)
        mixed = {name: _with_row(carry[name], fresh[name], 1) for name in carry}
        theirs = self.act(agent, mixed, first, 7)
        for what, one, other in (
            ("action", theirs.action, ours.action),
            ("carry", theirs.carry, ours.carry),
        ):
            check_same(f"{what} of an env with is_first, against a fresh carry", one, other)
        agent.load_rng_state(state)
        without = self.act(agent, carry, False, 7)
        for what, one, other in (
            ("action", without.action, ours.action),
            ("carry", without.carry, ours.carry),
        ):
            label = f"{what} of envs without is_first beside one that has it"
            check_same(label, _rows(one, ~first), _rows(other, ~first))

    # -- training ----------------------------------------------------------------------------------

    def check_training(self) -> None:
        """What ``train_step`` gives, and that it changes the policy."""
        agent = self.build()
        before = _weights(agent)
        spec = agent.spec
        for seed in range(2):
            out = self.train(agent, seed)
        lead = (spec.sampling.batch_size, spec.sampling.length)
        for name, value in out.metrics.items():
            shape = tuple(getattr(value, "shape", ()))
            expect(shape == (), f"metric {name!r}", "a scalar", f"shape {shape}")
        expect(float(out.nonfinite) == 0, "nonfinite of a finite batch", 0, float(out.nonfinite))
        expect(
            (out.refreshed is not None) == spec.writes_back,
            "refreshed extras of train_step",
            "a mapping" if spec.writes_back else "None, as spec.writes_back is False",
            type(out.refreshed).__name__,
        )
        for name, value in (out.refreshed or {}).items():
            expect(name in spec.extras, "refreshed extras", sorted(spec.extras), name)
            want = (*lead, *spec.extras[name].shape)
            expect(tuple(value.shape) == want, f"shape of refreshed {name!r}", want, value.shape)
            dtype = str(value.dtype).removeprefix("torch.")
            expect(
                dtype == spec.extras[name].dtype,
                f"dtype of refreshed {name!r}",
                spec.extras[name].dtype,
                dtype,
            )
        given = None if out.priorities is None else tuple(out.priorities.shape)
        promised = lead[:1] if spec.gives_priorities else None
        expect(given == promised, "shape of priorities of train_step", promised, given)
        changed = not np.array_equal(before, _weights(agent))
        expect(changed, "weights of the policy after two updates", "changed ones", "the same")

    def check_no_waiting(self) -> None:
        """An update leaves its numbers on the device."""
        agent = self.build()
        self.train(agent)  # what a first call prepares may wait
        batch = self.batch(agent, 1)
        try:
            with no_waiting():
                agent.train_step(batch)
        except ContractError as error:
            raise ContractError(
                f"train_step: expected no wait for the device, got one ({error})"
            ) from error

    def check_nonfinite(self) -> None:
        """A batch that is not finite is counted and changes nothing."""
        agent = self.build()
        self.train(agent)
        before = _weights(agent)
        out = self.train(agent, 1, reward=float("nan"))
        expect(float(out.nonfinite) == 1, "nonfinite of a batch with NaN", 1, float(out.nonfinite))
        same = np.array_equal(before, _weights(agent))
        expect(same, "weights after a batch with NaN", "those before it", "others")

    def check_optional(self) -> None:
        """What an agent may add."""
        agent = self.build()
        if isinstance(agent, PredictsAhead):
            check_predictions(agent, self.env)

    def check_terminated(self) -> None:
        """Whether an episode terminated matters to the update, where the env may terminate."""
        if not self.env.may_terminate:
            return
        results = []
        for terminated in (False, True):
            agent = self.build()
            metrics = self.train(agent, 0, terminated=terminated).metrics
            results.append([float(value) for value in metrics.values()])
            results[-1] += _weights(agent)[:4096].tolist()
        expect(
            results[0] != results[1],
            "an update whose windows end with terminated",
            "another one than without",
            "the same",
        )

    # -- repeating ---------------------------------------------------------------------------------

    def check_seed(self) -> None:
        """Equal seeds give equal agents, whatever the global random state is."""
        twins = []
        for global_seed in (11, 12):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(global_seed)
                twins.append(self.build())
                initial = _weights(twins[-1])
                out = self.continued(twins[-1])
            twins[-1] = (initial, *out)
        check_same("initial weights of equal seeds", {"w": twins[0][0]}, {"w": twins[1][0]})
        for what, one, other in zip(CONTINUED, twins[0][1:], twins[1][1:], strict=True):
            check_same(f"{what} of equal seeds", one, other)

    def check_weights(self) -> None:
        """``policy_weights`` is a copy; with it and the random state another agent acts alike."""
        agent = self.build()
        self.train(agent)
        snapshot = agent.policy_weights()
        before = snapshot.buffer.copy()
        other = self.build(2)
        other.load_weights(snapshot)
        other.load_rng_state(agent.rng_state())
        theirs = self.act(other, other.initial_carry(N), True)
        ours = self.act(agent, agent.initial_carry(N), True)
        check_same("action with loaded weights", ours.action, theirs.action)
        self.train(agent, 1)
        same = np.array_equal(before, snapshot.buffer)
        expect(same, "policy_weights after a further update", "a copy that stays", "another one")

    def check_resume(self) -> None:
        """Saved and loaded is never stopped: the state is complete, plain, and a copy."""
        agent = self.build()
        self.train(agent)
        carry = self.lived_carry(agent)
        state = agent.state_dict()
        check_plain("state_dict", state)
        kept = copy.deepcopy(state)
        ours = self.continued(agent, carry)
        check_same("state_dict after further updates, a copy", kept, state)
        other = self.build(2)
        other.load_state_dict(kept)
        for what, one, two in zip(CONTINUED, ours, self.continued(other, carry), strict=True):
            check_same(f"{what} after a resume", one, two)

    def continued(self, agent: Any, carry: Carry | None = None) -> tuple[Mapping[str, Any], ...]:
        """What an agent does next: see ``CONTINUED``."""
        carry = agent.initial_carry(N) if carry is None else carry
        action = self.act(agent, carry, carry is None, 4).action
        metrics = {}
        for seed in (5, 6):
            metrics = {n: float(v) for n, v in self.train(agent, seed).metrics.items()}
        weights = {"weights": _weights(agent)}
        return action, metrics, weights, self.act(agent, carry, False, 8).action


CONTINUED = ("action", "metrics of an update", "weights", "action after updates")


def _weights(agent: Any) -> np.ndarray:
    buffer: np.ndarray = agent.policy_weights().buffer.copy()
    return buffer


def _rows(group: Mapping[str, Any], chosen: np.ndarray) -> dict[str, Any]:
    """Some rows of arrays or tensors."""
    return {name: value[chosen] for name, value in group.items()}


def _check_group(what: str, values: Mapping[str, Any], specs: Mapping[str, ArraySpec]) -> None:
    expect(sorted(values) == sorted(specs), f"keys of {what}", sorted(specs), sorted(values))
    for key, spec in specs.items():
        value = values[key]
        is_array = isinstance(value, np.ndarray)
        expect(is_array, f"{what} {key!r}", "a numpy array", type(value).__name__)
        want = ((N, *spec.shape), spec.dtype)
        got = (value.shape, str(value.dtype))
        expect(got == want, f"shape and dtype of {what} {key!r}", want, got)


def _check_range(what: str, value: np.ndarray, spec: ArraySpec) -> None:
    if spec.is_discrete:
        most = np.array(spec.num_classes).reshape(spec.shape) - 1
        is_in = bool(np.all((value >= 0) & (value <= most)))
        expect(is_in, what, f"0..{most.tolist()}", value.tolist())
    else:
        is_in = bool(np.all(np.isfinite(value) & (np.abs(value) <= 1)))
        expect(is_in, what, "numbers in [-1, 1]", value.tolist())


def _with_row(array: Any, source: Any, row: int) -> Any:
    """A copy of an array or tensor with one row of another."""
    result = array.clone() if isinstance(array, torch.Tensor) else array.copy()
    result[row] = source[row]
    return result
