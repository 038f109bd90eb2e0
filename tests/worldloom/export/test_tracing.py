"""What cannot be exported says which operation stands in the way, in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.worldloom.export.small import saved_agent
from worldloom.algorithms.dreamerv3 import export as dreamer
from worldloom.core.exceptions import ConfigurationError
from worldloom.export import export_policy
from worldloom.export.graph import Port
from worldloom.export.tracing import load_program, program_of, save_onnx, save_program

PORTS = [Port(name="obs", role="observation", shape=(4,), dtype="float32")]


class Graph(nn.Module):
    """One input, one output, and whatever is between."""

    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.what = what
        self.inputs = PORTS
        self.outputs = [Port(name="action", role="action", shape=(4,), dtype="float32")]

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"action": self.what(inputs["obs"])}

    def example(self, rows: int) -> dict[str, Tensor]:
        return {"obs": torch.zeros(rows, 4)}


def branching(x: Tensor) -> Tensor:
    return x + 1 if x.sum() > 0 else x - 1


def numpy_inside(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() + 1)


def bessel(x: Tensor) -> Tensor:
    return torch.special.modified_bessel_i0(x)


def eigen(x: Tensor) -> Tensor:
    return torch.linalg.eigvals(x[:, :, None] * x[:, None, :]).real


def one_row(x: Tensor) -> Tensor:
    return x.reshape(1, 4) * 2


@pytest.mark.parametrize(
    ("what", "named"),
    [
        (branching, "aten._local_scalar_dense"),
        (bessel, "aten.special_modified_bessel_i0"),
        (eigen, "aten.linalg_eig"),
        (numpy_inside, "numpy"),
    ],
)
def test_the_operation_is_named(
    what: Callable[[Tensor], Tensor], named: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph: Any = Graph(what)

    def export() -> None:
        program, _ = program_of(graph, "mine:small")
        save_onnx(program, graph, "mine:small", tmp_path / "policy.onnx")

    with pytest.raises(ConfigurationError) as told:
        export()
    text = str(told.value)
    assert text.startswith("agent 'mine:small' cannot be exported, ")
    assert named in text
    assert "\n" not in text
    assert "--format safetensors" in text
    assert capfd.readouterr() == ("", "")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("what", "any_batch"), [(one_row, False), (torch.tanh, True)])
def test_a_graph_of_one_row_says_so(
    what: Callable[[Tensor], Tensor], any_batch: bool, tmp_path: Path
) -> None:
    graph: Any = Graph(what)
    program, takes_any_batch = program_of(graph, "mine:small")
    assert takes_any_batch == any_batch
    save_program(program, tmp_path / "policy.pt2")
    run = load_program(tmp_path / "policy.pt2")
    x = torch.linspace(-1, 1, 4)[None]
    torch.testing.assert_close(torch.from_numpy(run({"obs": x.numpy()})["action"]), what(x))


def test_an_agent_without_a_step_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved_agent(tmp_path / "agent", "dreamerv3:ci", "gym:CartPole-v1")
    monkeypatch.delattr(dreamer, "make_step")
    with pytest.raises(ConfigurationError, match=r"cannot be exported: .* make_step"):
        export_policy(path, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()
    export_policy(path, tmp_path / "policy", format="safetensors")
