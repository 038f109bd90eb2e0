"""How an update runs: eagerly, or captured once as a CUDA graph and replayed, or through
``torch.compile``.

A captured update is one launch instead of thousands, so small models stop waiting for the host. It
needs what our agents promise: static shapes, no value read back, all state updated in place,
generators of their own. What is known not to be capturable runs eagerly, and one line in the log
says which way was taken and why.

A capture that fails leaves the process unusable: torch keeps the graph's memory pool and generators
as if it were still recording, so draws fail and freed memory is never used again. So it ends the
learner (:class:`CaptureFailedError`), and the next one runs eagerly from the start.

``torch.compile`` is tried with agents whose ``AgentSpec.can_compile`` is true: those for which a
test has held compiled updates against eager ones.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Literal

import torch

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import WorldLoomError
from worldloom.core.protocol import Agent, CapturableUpdate, Refreshable, TrainOutput
from worldloom.core.sequence import SequenceBatch
from worldloom.nn.cuda_graphs import CudaRecorder, Recorder
from worldloom.nn.cuda_streams import use_device

__all__ = [
    "CaptureFailedError",
    "CompileMode",
    "GraphStep",
    "Step",
    "make_step",
    "prepare_torch",
]

logger = logging.getLogger(__name__)

CompileMode = Literal["off", "auto", "graph", "inductor"]
Step = Callable[[SequenceBatch], TrainOutput]
WARM_UP_UPDATES = 4


class CaptureFailedError(WorldLoomError, RuntimeError):
    """An update could not be captured, and this process cannot train any more; see the module."""


def prepare_torch(
    device: str, *, threads: int, tf32: bool = True, deterministic: bool = False
) -> None:
    """Settings of this process and of the calling thread, before anything is computed.

    Args:
        device: Where the agent will be.
        threads: Of one operator on the CPU.
        tf32: On CUDA, multiply float32 matrices with 10-bit mantissas (about 1e-3 relative error),
            which is several times faster.
        deterministic: Only operators that give the same bits every time; one without such a form
            raises.
    """
    torch.set_num_threads(threads)
    use_device(device)
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high" if tf32 and not deterministic else "highest")
        torch.backends.cudnn.allow_tf32 = tf32 and not deterministic
        torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def make_step(agent: Agent, device: str, mode: CompileMode, *, ranks: int = 1) -> Step:
    """The update of ``agent`` the way ``mode`` asks for, or eagerly where that is impossible."""
    reason = _obstacle(agent, device, mode, ranks)
    if reason is not None:
        # on a CPU no one expects anything else
        is_news = device.startswith("cuda") or mode != "auto"
        level = (
            logging.WARNING
            if mode not in ("off", "auto")
            else logging.INFO
            if is_news
            else logging.DEBUG
        )
        logger.log(level, "updates run eagerly: %s", reason)
        return agent.train_step
    if mode == "inductor":
        logger.info("updates run through torch.compile: asked for; the first one takes minutes")
        return _Compiled(agent)
    assert isinstance(agent, CapturableUpdate)  # else that would be an obstacle
    return GraphStep(agent, CudaRecorder(torch.device(device), agent.generators()))


def _obstacle(agent: Agent, device: str, mode: CompileMode, ranks: int) -> str | None:
    if mode == "off":
        return "learner.compile is off"
    if mode == "inductor":
        if not agent.spec.can_compile:
            return (
                f"{agent.spec.name} has not been shown to make the same update through "
                "torch.compile"
            )
        return f"torch.compile is not used with {ranks} learner ranks" if ranks > 1 else None
    if not device.startswith("cuda"):
        return f"a {device} has no graphs to capture"
    if ranks > 1 and mode == "auto":
        return (
            f"auto captures no graphs with {ranks} learner ranks; "
            "--learner.compile graph captures their all-reduce too"
        )
    if not isinstance(agent, CapturableUpdate):
        return f"{agent.spec.name} does not say which generators its update draws from"
    return None


class GraphStep:
    """Runs the first updates eagerly, then captures one and replays it for every batch of the same
    shapes.

    Args:
        agent: Keeps the promises of the module's docstring.
        recorder: CUDA.
    """

    def __init__(self, agent: Agent, recorder: Recorder) -> None:
        self._agent = agent
        self._recorder = recorder
        self._updates = 0
        self._inputs: SequenceBatch | None = None
        self._output: TrainOutput | None = None

    @property
    def is_captured(self) -> bool:
        """True once updates are replayed."""
        return self._output is not None

    def __call__(self, batch: SequenceBatch) -> TrainOutput:
        """One update. The tensors of the result are overwritten by the next one.

        Raises:
            CaptureFailedError: If it cannot be captured.
        """
        self._updates += 1
        if self._updates <= WARM_UP_UPDATES:
            output: TrainOutput = self._recorder.warm(lambda: self._agent.train_step(batch))
            return output
        if self._output is None:
            self._output = self._capture(batch)
        assert self._inputs is not None
        sources = batch.arrays()
        if [t.shape for t in sources] != [t.shape for t in self._inputs.arrays()]:
            return self._agent.train_step(batch)
        torch._foreach_copy_(self._inputs.arrays(), sources)
        self._recorder.replay()
        if isinstance(self._agent, Refreshable):
            self._agent.refresh()  # a replay runs no Python of the update
        return self._output

    def _capture(self, batch: SequenceBatch) -> TrainOutput:
        self._inputs = inputs = batch.map(torch.clone)
        try:
            output: TrainOutput = self._recorder.capture(lambda: self._agent.train_step(inputs))
        except RuntimeError as error:
            # ending a broken recording raises too, on top of what broke it
            reason = first_line(error.__context__ or error)
            raise CaptureFailedError(f"an update could not be captured ({reason})") from error
        logger.info("updates run as one captured CUDA graph")
        return output


class _Compiled:
    """``torch.compile`` of the update. A first update that fails, or a later compilation, ends it
    for good.

    Parts of an update are compiled one after the other, when they are reached. So the state before
    the first update is kept until it has ended, or what was compiled by then would be applied
    twice.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._step: Step = torch.compile(agent.train_step, dynamic=False)
        self._has_worked = False

    def __call__(self, batch: SequenceBatch) -> TrainOutput:
        """One update."""
        before = None if self._has_worked else self._agent.state_dict()
        try:
            output = self._step(batch)
        except (
            torch._dynamo.exc.TorchDynamoException,
            torch._inductor.exc.InductorError,
            RuntimeError,
            OSError,
        ) as error:
            is_compilers = isinstance(
                error, torch._dynamo.exc.TorchDynamoException | torch._inductor.exc.InductorError
            )
            if before is None and not is_compilers:
                raise  # of the update itself
            logger.warning("updates run eagerly: torch.compile failed (%s)", first_line(error))
            self._step = self._agent.train_step
            if before is not None:
                self._agent.load_state_dict(before)
            output = self._step(batch)
        self._has_worked = True
        return output
