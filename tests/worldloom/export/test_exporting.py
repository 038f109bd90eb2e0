"""``worldloom export``: what it writes decides as the agent does, or nothing is written."""

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.worldloom.export.playing import (
    graph_of,
    returns_in_torch,
    returns_without_torch,
    runner_of,
    without_torch,
)
from tests.worldloom.export.small import saved_agent
from worldloom.commands import main
from worldloom.core.exceptions import ConfigurationError, MissingDependencyError
from worldloom.core.weights import WeightsSnapshot
from worldloom.export import Exported, export_policy
from worldloom.export import exporting as module
from worldloom.training.saved_agents import SavedAgent

HERE = "tests.worldloom.export.test_exporting"


class RoomEnv(gymnasium.Env[Any, Any]):
    """Pictures, numbers and classes in; numbers and classes out."""

    metadata = {"render_fps": 12}  # noqa: RUF012 - the base class declares it so
    observation_space = spaces.Dict(
        {
            "eye": spaces.Box(0, 255, (3, 40, 48), np.uint8),
            "arm": spaces.Box(-2, 2, (3,), np.float64),
            "room": spaces.Discrete(4, start=1),
        }
    )
    action_space = spaces.Dict(
        {"turn": spaces.Box(-3, 5, (2,), np.float64), "door": spaces.Discrete(3, start=-1)}
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.t += 1
        return self.observation_space.sample(), float(action["turn"][0]), False, self.t == 9, {}


class ReachEnv(RoomEnv):
    """The same with numbers out alone, as TD-MPC2 needs them."""

    action_space = spaces.Dict({"turn": spaces.Box(-3, 5, (2,), np.float64)})


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    saved_agent(folder / "cartpole", "dreamerv3:ci", "gym:CartPole-v1")
    saved_agent(
        folder / "pendulum", "tdmpc2:ci", "gym:Pendulum-v1", {"action_repeat": 2}, mlp_dim=40
    )
    return folder


OPTIONS: dict[str, dict[str, Any]] = {
    "cartpole": {},
    "pendulum": {},
    "planner": {"planner": True, "samples": 6},
}


@pytest.fixture(scope="module")
def policies(agents: Path) -> dict[str, Exported]:
    """One of each kind, exported once."""
    return {
        kind: export_policy(
            agent_of(agents, kind), agents / f"{kind}-policy", decisions=120, **options
        )
        for kind, options in OPTIONS.items()
    }


def agent_of(agents: Path, kind: str) -> Path:
    return agents / ("pendulum" if kind == "planner" else kind)


def test_an_exported_dreamer_decides_as_the_agent_does(policies: dict[str, Exported]) -> None:
    found = policies["cartpole"]
    assert found.parity is not None
    assert found.parity.agreeing == 1.0
    assert found.parity.largest["action"] == 0
    assert found.parity.largest["next_carry/deter"] < 1e-4
    assert len(found.parity.returns) >= 2
    assert {path.name for path in found.folder.iterdir()} == set(found.files)
    contract = json.loads((found.folder / "policy.json").read_text())
    names = {port["name"]: port for port in contract["inputs"]}
    assert set(names) == {
        *("obs", "is_first", "uniform", "carry/deter", "carry/stoch", "carry/action")
    }
    assert names["obs"]["space"]["low"][0] == pytest.approx(-4.8)
    assert names["carry/deter"] == {
        "name": "carry/deter",
        "role": "carry",
        "shape": [16],
        "dtype": "float32",
        "start": 0,
        "next": "next_carry/deter",
    }
    assert contract["control"] == {
        "action_repeat": 1,
        "steps_per_second": 50.0,
        "decisions_per_second": 50.0,
    }
    assert contract["env"]["gymnasium"] == {"id": "CartPole-v1", "kwargs": {}}
    assert contract["run"]["train_steps"] == 7
    assert contract["batch"] == "any"
    report = json.loads((found.folder / "parity.json").read_text())
    assert report["decisions"] == 120
    assert set(report["latency_ms"]) == {"torch", "onnxruntime"}


@pytest.mark.parametrize("planner", [False, True])
def test_an_exported_tdmpc2_decides_as_the_agent_does(
    planner: bool, policies: dict[str, Exported]
) -> None:
    found = policies["planner" if planner else "pendulum"]
    assert found.parity is not None
    assert found.parity.agreeing >= 0.99
    roles = {port["role"] for port in found.contract["inputs"]}
    assert roles == ({"observation", "carry", "is_first", "noise"} if planner else {"observation"})
    assert found.contract["control"]["decisions_per_second"] == pytest.approx(10.0)
    if planner:
        assert found.contract["agent"]["num_samples"] == 6


@pytest.mark.parametrize("env", ["gym:CartPole-v1", "gym:Pendulum-v1"])
def test_an_exported_mlp_decides_as_its_actor_does(env: str, tmp_path: Path) -> None:
    path = saved_agent(tmp_path / "agent", "mlp:ci", env, acting="cem")
    found = export_policy(path, tmp_path / "policy", decisions=40)
    assert found.parity is not None
    assert found.parity.agreeing >= 0.99
    assert {port["role"] for port in found.contract["inputs"]} == {"observation"}
    with pytest.raises(ConfigurationError, match="leave --planner out"):
        export_policy(path, tmp_path / "other", planner=True)


def test_an_exported_r2dreamer_decides_as_the_agent_does(tmp_path: Path) -> None:
    path = saved_agent(tmp_path / "agent", "r2dreamer:ci", "gym:CartPole-v1")
    found = export_policy(path, tmp_path / "policy", decisions=40)
    assert found.parity is not None
    assert found.parity.agreeing >= 0.99
    with pytest.raises(ConfigurationError, match="leave --planner out"):
        export_policy(path, tmp_path / "other", planner=True)


@pytest.mark.parametrize(
    ("agent", "env", "settings"),
    [
        ("dreamerv3:ci", "RoomEnv", {"image_size": 32, "grayscale": True, "frame_stack": 2}),
        pytest.param(
            "tdmpc2:ci",
            "ReachEnv",
            {"image_size": 36, "frame_stack": 2, "time_limit": 5},
            marks=pytest.mark.long,
        ),
    ],
)
def test_pictures_classes_and_dicts_go_in_and_come_out_raw(
    agent: str, env: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    planner = agent.startswith("tdmpc2")
    sizes = {"iterations": 1, "horizon": 1} if planner else {}
    path = saved_agent(tmp_path / "agent", agent, f"{HERE}:{env}", settings, **sizes)
    found = export_policy(path, tmp_path / "policy", planner=planner, decisions=40, trust_env=True)
    assert found.parity is not None
    assert found.parity.agreeing >= 0.99
    assert found.contract["env"]["gymnasium"] is None
    assert found.contract["control"]["steps_per_second"] == 12.0
    policy = runner_of(tmp_path / "policy").Policy()
    made = globals()[env]()
    obs, _ = made.reset(seed=1)
    for _ in range(3):
        action = policy.act(obs)
        assert made.action_space.contains(action)
        obs = made.step(action)[0]


@pytest.mark.parametrize("kind", ["cartpole", "planner"])
def test_it_takes_any_number_of_rows(
    kind: str, agents: Path, policies: dict[str, Exported]
) -> None:
    graph = graph_of(agent_of(agents, kind), **OPTIONS[kind])
    run = module.runner_of(policies[kind].folder / "policy.onnx")
    draw = np.random.default_rng(0)
    inputs = {port.name: port.zeros(5) for port in graph.inputs}
    for port in graph.inputs:
        if port.dtype == "float32":
            inputs[port.name] = draw.random(inputs[port.name].shape, np.float32)
    inputs["is_first"][2] = True
    wanted = graph.run(inputs)
    for key, value in run(inputs).items():
        np.testing.assert_allclose(value, wanted[key], atol=1e-4)


def test_a_program_of_torch_decides_as_the_agent_does(agents: Path, tmp_path: Path) -> None:
    found = export_policy(agents / "cartpole", tmp_path / "p", format="torch", decisions=20)
    assert found.parity is not None
    assert found.parity.agreeing == 1.0
    assert found.files == ("policy.pt2", "policy.json", "parity.json")
    program = torch.export.load(tmp_path / "p/policy.pt2").module()
    inputs = {
        port["name"]: torch.zeros([1, *port["shape"]], dtype=getattr(torch, port["dtype"]))
        for port in found.contract["inputs"]
    }
    assert program(inputs)["action"].shape == (1,)


def test_weights_alone_are_those_that_act(agents: Path, tmp_path: Path) -> None:
    found = export_policy(agents / "cartpole", tmp_path / "p", format="safetensors")
    assert found.files == ("policy.safetensors", "policy.json")
    weights = WeightsSnapshot.from_bytes((tmp_path / "p/policy.safetensors").read_bytes())
    policy = SavedAgent.read(agents / "cartpole").build(device="cpu", seed=0)
    held = policy.policy_weights().arrays()
    assert {entry["name"] for entry in found.contract["tensors"]} == set(held)
    for name, value in weights.arrays().items():
        np.testing.assert_array_equal(value, held[name])


def test_files_of_another_format_do_not_stay(agents: Path, tmp_path: Path) -> None:
    place = tmp_path / "policy"
    export_policy(agents / "cartpole", place, decisions=5)
    (place / "mine.txt").write_text("mine")
    found = export_policy(agents / "cartpole", place, format="safetensors")
    assert {path.name for path in place.iterdir()} == {*found.files, "mine.txt"}


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_smaller_weights_are_written_where_they_decide_alike(
    precision: Any,
    agents: Path,
    policies: dict[str, Exported],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "policy"
    monkeypatch.setitem(module.TOLERANCE, precision, 1.0)
    found = export_policy(agents / "pendulum", place, precision=precision, decisions=20)
    assert found.contract["precision"] == precision
    assert found.parity is not None
    assert found.parity.largest["action"] > 1e-5
    whole = policies["pendulum"].folder / "policy.onnx"
    assert (place / "policy.onnx").stat().st_size < whole.stat().st_size
    monkeypatch.setitem(module.TOLERANCE, precision, 1e-9)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(ConfigurationError, match=rf"{precision} does not decide .*% of 20"):
        export_policy(agents / "pendulum", place, precision=precision, decisions=20)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--format", "tflite"], "format must be one of onnx, torch, safetensors, got 'tflite'"),
        (["--precision", "int4"], "precision must be one of float32, bf16, int8, got 'int4'"),
        (["--format", "torch", "--precision", "int8"], "precision int8 is for format onnx"),
        (["--planner"], "dreamerv3:ci acts with its actor and has no planner"),
        (["--samples", "4"], "add --planner"),
        (["--planner", "--samples", "4"], "dreamerv3:ci has no planner"),
        (["--format", "safetensors", "--planner"], "leave --planner out"),
        (["--decisions", "0"], "decisions must be an integer >= 1, got 0"),
        (["--seed", "-1"], "seed must be an integer >= 0, got -1"),
        (["--observations", "none"], "observations must be one of env, random"),
        (["-o", "file"], "file is a file; name a folder"),
        (["-o", "full"], "full holds something else than an exported policy"),
        ([], "name a folder with -o FOLDER"),
    ],
)
def test_wrong_words_are_one_sentence(
    words: list[str],
    sentence: str,
    agents: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes").write_text("mine")
    given = words if "-o" in words or not words else [*words, "-o", "out"]
    assert main(["export", str(agents / "cartpole"), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.long
def test_an_env_that_is_not_here_is_told(agents: Path, tmp_path: Path) -> None:
    path = saved_agent(tmp_path / "agent", "dreamerv3:ci", f"{HERE}:RoomEnv")
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f"{HERE}:RoomEnv", "gone.envs:RoomEnv"))
    with pytest.raises(ConfigurationError, match=r"cannot be built here .* --observations random"):
        export_policy(path, tmp_path / "policy", decisions=5, trust_env=True)
    assert not (tmp_path / "policy").exists()
    found = export_policy(path, tmp_path / "policy", decisions=5, observations="random")
    assert found.parity is not None
    assert found.parity.observations == "random"
    assert found.contract["control"]["steps_per_second"] is None


def test_a_missing_package_names_the_line_that_installs_it(
    agents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError, match=r"onnxscript: pip install .*\[export\]"):
        export_policy(agents / "cartpole", tmp_path / "policy")


@pytest.mark.parametrize("kind", ["cartpole", "pendulum", "planner"])
def test_it_plays_without_torch_to_the_same_returns(
    kind: str, agents: Path, policies: dict[str, Exported], tmp_path: Path
) -> None:
    policy = policies[kind].folder
    found = returns_without_torch(policy, without_torch(tmp_path / "python"), 3)
    wanted = returns_in_torch(graph_of(agent_of(agents, kind), **OPTIONS[kind]), policy, 3)
    assert found == pytest.approx(wanted, rel=1e-2)
