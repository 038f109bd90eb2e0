"""What the packages promise each other: agents, policies, and what the system must know of an agent
to run it.

The distributed system knows an algorithm only through this file. If it ever needs ``if algo ==``, a
field is missing here. Axis legend: N envs, B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.foresight import Foresight
from worldloom.core.process_group import ProcessGroup
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec
from worldloom.core.weights import WeightsSnapshot

__all__ = [
    "ActOutput",
    "Agent",
    "AgentSpec",
    "Capturable",
    "CapturableUpdate",
    "Carry",
    "Decide",
    "Policy",
    "PredictsAhead",
    "Refreshable",
    "RemembersActions",
    "Reporting",
    "SamplingSpec",
    "SharesWeights",
    "TrainOutput",
]

Carry = dict[str, Any]
"""What a policy remembers between steps: name -> array (numpy or torch) with the env axis first, so
that rows of it can be gathered, scattered and sent. Owned by the caller of ``act``: the worker, or
the inference server's table.
"""

Decide = Callable[..., dict[str, Any]]
"""``decide(inputs, *, explore)``: tensors by name, rows first, to new tensors by name; see
:class:`Capturable`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSpec:
    """Which windows of rows one train step reads.

    A window has ``context + length + bootstrap`` consecutive rows of one stream, of which
    ``length`` positions are trained: context rows only provide a start state, bootstrap rows only a
    target.

    Args:
        batch_size: Windows per batch (B).
        length: Trained positions per window.
        context: Leading rows that are not trained.
        bootstrap: Trailing rows that are not trained.
        cross_episodes: May a window run across the end of an episode into the next one of the same
            stream?
        online: Serve each new window once, as soon as it is complete, before drawing uniformly
            (DreamerV3's online queue).
        stride: A window begins at every this many rows of its stream, or of its episode where it
            may not cross; at most ``window_rows``, and then windows never overlap. With 1 every row
            may begin one.
    """

    batch_size: int
    length: int
    context: int = 0
    bootstrap: int = 0
    cross_episodes: bool = False
    online: bool = False
    stride: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.length < 1 or self.context < 0 or self.bootstrap < 0:
            raise ConfigurationError(
                "sampling needs batch_size >= 1, length >= 1, context >= 0, "
                f"bootstrap >= 0; got {self}"
            )
        if not 1 <= self.stride <= self.window_rows:
            raise ConfigurationError(
                f"stride must be 1 to {self.window_rows} (a window), or some rows "
                f"would never be trained; got {self.stride}"
            )

    @property
    def window_rows(self) -> int:
        """Rows of one window."""
        return self.context + self.length + self.bootstrap

    @property
    def least_rows(self) -> int:
        """Consecutive rows of one stream that hold a whole window wherever they begin."""
        return self.window_rows + self.stride - 1

    @property
    def trained_positions(self) -> int:
        """Positions whose loss enters one update (16 x 64 for DreamerV3, 256 x 3 for TD-MPC2)."""
        return self.batch_size * self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """What the system must know of an agent. Needs no torch.

    Args:
        name: ``algorithm:preset``.
        sampling: What a train step reads.
        train_ratio: Default trained positions per agent step, over the whole run.
        prefill_agent_steps: Agent steps before the first update. They are not owed to the train
            ratio.
        random_prefill: Act uniformly at random during the prefill; otherwise the untrained policy
            acts.
        pretrain_updates: Updates made at once when the prefill is complete.
        extras: Further columns that ``act`` emits for every row (for example replay latents).
        writes_back: True when ``train_step`` returns refreshed extras.
        gives_priorities: True when ``train_step`` returns priorities of its windows.
        acting: How dear one action is: ``light`` (a network) or ``planner`` (a search).
        can_compile: True when a test has held updates through ``torch.compile`` against eager ones.
        knows_tasks: True when it can learn several tasks at once, of which the observation key
            ``task`` (``core.specs.TASK``) names each row's.
        metric_keys: Scalars of ``TrainOutput.metrics`` that have a name of their own in the
            system's table of metrics: name -> key, for example ``pi_scale`` -> ``return_scale``.
    """

    name: str
    sampling: SamplingSpec
    train_ratio: float
    prefill_agent_steps: int
    random_prefill: bool = True
    pretrain_updates: int = 0
    extras: Mapping[str, ArraySpec] = field(default_factory=dict)
    writes_back: bool = False
    gives_priorities: bool = False
    acting: Literal["light", "planner"] = "light"
    can_compile: bool = False
    knows_tasks: bool = False
    metric_keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ActOutput:
    """Result of one batched decision.

    Attributes:
        action: Per action key ``[N, ...]``, numpy on the host; continuous values in [-1, 1],
            discrete ones int.
        carry: The next carry, env axis first.
        extras: Columns for the stored rows, ``[N, ...]``, numpy.
    """

    action: Mapping[str, np.ndarray]
    carry: Carry
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainOutput:
    """Result of one train step.

    Attributes:
        metrics: Scalars by name; they stay on the device until they are flushed (no
            ``.item()`` in the step).
        nonfinite: 0-d tensor or number, 1 when the step was skipped because a loss or gradient was
            not finite.
        refreshed: Extras to write back to replay, per column ``[B, T, ...]``, aligned with
            ``batch.row_ids``; or None.
        priorities: ``[B]`` new priorities of the windows, or None.
    """

    metrics: Mapping[str, Any]
    nonfinite: Any = 0
    refreshed: Mapping[str, Any] | None = None
    priorities: Any = None


@runtime_checkable
class Policy(Protocol):
    """All that acting needs: no optimizer, no target networks."""

    def initial_carry(self, num_envs: int) -> Carry:
        """A carry for ``num_envs`` envs at the start of an episode."""

    def act(
        self, obs: Mapping[str, np.ndarray], carry: Carry, is_first: np.ndarray, *, explore: bool
    ) -> ActOutput:
        """Choose one action per env.

        Args:
            obs: Per key ``[N, ...]``.
            carry: From :meth:`initial_carry` or the previous call; not modified.
            is_first: ``[N]`` bool; where True the carry is reset before use, so no caller can
                forget it.
            explore: False for evaluation.
        """

    def load_weights(self, snapshot: WeightsSnapshot) -> None:
        """Act with these weights from now on.

        Raises:
            CheckpointError: If names, shapes or dtypes do not fit this policy.
        """

    def rng_state(self) -> dict[str, Any]:
        """The random state that acting uses, as a tree for a checkpoint."""

    def load_rng_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`rng_state`."""


@runtime_checkable
class Agent(Policy, Protocol):
    """What the learner needs."""

    spec: AgentSpec

    def train_step(self, batch: SequenceBatch) -> TrainOutput:
        """One update of everything (world model, policy, critics, targets) from a batch of tensors
        on this agent's device.
        """

    def join(self, ranks: ProcessGroup) -> None:
        """Train as one of several ranks from now on: batches are this rank's equal share of a joint
        batch. At most once.
        """

    def policy_weights(self) -> WeightsSnapshot:
        """A copy of what ``act`` reads, and nothing else."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume: a nested dict of tensors, arrays and JSON scalars. Includes
        random state.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`.

        Raises:
            CheckpointError: If the state belongs to another architecture; names the first
                difference.
        """


@runtime_checkable
class Capturable(Protocol):
    """What a policy adds whose decision can be captured as a CUDA graph.

    Its ``act`` brings obs, carry and random draws to the device, calls one function of those
    tensors, and takes the results to the host. That function draws nothing, reads no value back,
    copies nothing between host and device, and keeps no state; it reads weights at addresses that
    :meth:`Policy.load_weights` does not change.
    """

    def decide_through(self, wrap: Callable[[Decide], Decide]) -> None:
        """Call ``wrap(decide)`` in place of the function from now on."""


@runtime_checkable
class CapturableUpdate(Protocol):
    """What an agent adds whose update can be captured as a CUDA graph: ``train_step`` has static
    shapes, reads no value back, and updates all state in place.
    """

    def generators(self) -> Sequence[Any]:
        """The ``torch.Generator`` objects that ``train_step`` and ``act`` draw from; a replayed
        graph goes on in their sequences.
        """


@runtime_checkable
class Refreshable(Protocol):
    """What an agent adds that keeps, for acting, something that it made from its weights.

    ``train_step`` calls it itself; after a replay of a captured update, which runs no Python, the
    learner does.
    """

    def refresh(self) -> None:
        """Make it again before the next decision."""


@runtime_checkable
class RemembersActions(Protocol):
    """What a policy adds whose carry holds the action that it chose last: an env may have executed
    another one, because a person or a safety layer stepped in.
    """

    def after_executed(self, carry: Carry, action: Mapping[str, np.ndarray]) -> Carry:
        """The carry as it would be had ``action`` been chosen.

        Args:
            carry: As the previous call of ``act`` returned it; not modified.
            action: What ran, per action key ``[N, ...]``, as ``act`` gives it.
        """


@runtime_checkable
class SharesWeights(Protocol):
    """What an agent adds whose weights can be sent without a copy of it made first, for example
    from a GPU by a thread of its own.
    """

    def policy_tensors(self) -> Mapping[str, Any]:
        """What :meth:`Agent.policy_weights` copies, as it is: name -> tensor."""


@runtime_checkable
class Reporting(Protocol):
    """What an agent adds that can show what it predicts; the learner asks for it now and then,
    outside its updates.
    """

    def report(self, batch: SequenceBatch) -> Mapping[str, np.ndarray]:
        """Pictures of predictions on a batch of tensors: key -> uint8 frames ``[T, Y, X, 3]``, one
        frame for a still.

        Changes nothing that training depends on, random state included.
        """


@runtime_checkable
class PredictsAhead(Protocol):
    """What an agent adds whose model can be held against what came."""

    def predict_ahead(self, batch: SequenceBatch, warm_up: int) -> Foresight:
        """See the first rows of windows, then follow their actions alone.

        Changes nothing that training or acting depends on, random state included; equal calls give
        equal predictions.

        Args:
            batch: Numpy arrays ``[B, W + K, ...]``, each window inside one episode; extras are not
                needed.
            warm_up: W, at least 1 and less than the rows.
        """


def __getattr__(name: str) -> Any:
    """``WorldModel`` is found here too, where 0.1 had it; its own module needs torch, this one does
    not.
    """
    if name != "WorldModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from worldloom.core.world_model import WorldModel

    return WorldModel
