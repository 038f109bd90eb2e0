"""A trained agent in one's own program: it takes and gives the env's own arrays."""

import dataclasses
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import worldloom
from worldloom.algorithms.registry import make_agent, make_agent_config, make_policy
from worldloom.core.exceptions import (
    CheckpointError,
    ConfigurationError,
    EnvFailureError,
    ShapeMismatchError,
    StateError,
)
from worldloom.core.specs import EnvSpec
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import env_spec
from worldloom.training.saved_agents import SavedAgent
from worldloom.training.tree_files import load_tree, save_tree

ARCHIVE = Path(__file__).parents[1] / "data/runs-0.2.0.tar.gz"


class SpacesEnv(gymnasium.Env[Any, Any]):
    """Episodes of three steps, in the spaces of a subclass."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.t += 1
        return self.observation_space.sample(), 0.0, False, self.t == 3, {}


class OffsetEnv(SpacesEnv):
    observation_space = spaces.Box(-5, 5, (2,), np.float64)
    action_space = spaces.Discrete(3, start=-1)


class UnitsEnv(SpacesEnv):
    observation_space = spaces.Dict(
        {"speed": spaces.Box(0, 120, (1,), np.float32), "gear": spaces.Discrete(5, start=1)}
    )
    action_space = spaces.Box(np.array([0, 10]), np.array([50, 20]), dtype=np.float64)


class PictureEnv(SpacesEnv):
    observation_space = spaces.Box(0, 255, (3, 80, 80), np.uint8)
    action_space = spaces.MultiDiscrete([2, 3])


def checkpoint(folder: Path, agent: str, env: EnvConfig) -> Path:
    """An untrained agent as a run's checkpoint has it."""
    config = make_agent_config(agent)
    spec = env_spec(env)
    state = make_agent(config, spec, seed=3).state_dict()
    known = {**spec.to_dict(), "name": env.env, "settings": env.resolved().settings()}
    facts = {"agent": dataclasses.asdict(config), "env": known}  # type: ignore[call-overload]
    save_tree(folder, {"learner": {"agent": state, "train_steps": 0}}, facts)
    return folder


@pytest.fixture(scope="module")
def old_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("name", ["local-dreamerv3", "local-tdmpc2"])
def test_a_run_of_an_earlier_version_acts_in_the_env_s_units(old_runs: Path, name: str) -> None:
    agent = worldloom.load_agent(str(old_runs / name))
    env = gymnasium.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    actions = []
    for _ in range(4):
        action = agent.act(obs)
        assert env.action_space.contains(action)
        actions.append(action)
        obs, *_ = env.step(action)
    again = worldloom.load_agent(old_runs / name / "checkpoints" / "best")
    assert again.action_space == env.action_space
    env.close()


def test_it_acts_as_the_policy_with_its_carry_does(old_runs: Path) -> None:
    run = old_runs / "local-dreamerv3"
    facts = json.loads((run / "config.json").read_text())
    settings = dict(facts["agent"])
    config = make_agent_config(settings.pop("name"), settings)
    spec = EnvSpec.from_dict(facts["env"])
    trained = make_agent(config, spec)
    tree = load_tree(run / "checkpoints" / "step-000000000151")
    trained.load_state_dict(tree["learner"]["agent"])
    policy = make_policy(config, spec, seed=0)
    policy.load_weights(trained.policy_weights())
    agent = worldloom.load_agent(run)
    carry = policy.initial_carry(1)
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    starts = [True, False, False, True, False, True]
    for step, (obs, first) in enumerate(zip(rows, starts, strict=True)):
        out = policy.act({"obs": obs[None]}, carry, np.array([first]), explore=False)
        carry = out.carry
        if first and step == 3:
            agent.reset()
        action = agent.act(obs, is_first=True if step == 5 else None)
        np.testing.assert_allclose(action, 2 * out.action["action"][0], rtol=1e-6)


@pytest.mark.parametrize(
    ("made", "agent", "settings"),
    [
        (OffsetEnv, "dreamerv3:ci", {}),
        (UnitsEnv, "tdmpc2:ci", {}),
        (UnitsEnv, "dreamerv3:ci", {"action_repeat": 2}),
        (OffsetEnv, "r2dreamer:ci", {}),
        (PictureEnv, "dreamerv3:ci", {"image_size": 64, "grayscale": True, "frame_stack": 2}),
    ],
)
def test_observations_and_actions_are_the_env_s_own(
    tmp_path: Path, made: type, agent: str, settings: dict[str, Any]
) -> None:
    config = EnvConfig(env=f"{__name__}:{made.__name__}", **settings)
    loaded = worldloom.load_agent(checkpoint(tmp_path / "saved", agent, config))
    env = made()
    assert loaded.observation_space == env.observation_space
    assert loaded.action_space == env.action_space
    assert loaded.action_space.dtype == env.action_space.dtype
    assert loaded.action_repeat == settings.get("action_repeat", 1)
    for _ in range(2):
        obs, _ = env.reset()
        loaded.reset()
        for _ in range(3):
            action = loaded.act(obs)
            assert env.action_space.contains(action)
            obs, *_ = env.step(action)


def test_neither_ray_nor_the_env_is_needed(tmp_path: Path) -> None:
    (tmp_path / "gone_env.py").write_text(
        "import numpy as np\nfrom gymnasium import Env, spaces\n"
        "class Gone(Env):\n"
        "    observation_space = spaces.Box(-5, 5, (2,), np.float64)\n"
        "    action_space = spaces.Discrete(3, start=-1)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        folder = checkpoint(tmp_path / "saved", "dreamerv3:ci", EnvConfig(env="gone_env:Gone"))
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("gone_env", None)
    code = (
        "import sys, numpy, worldloom\n"
        f"agent = worldloom.load_agent({str(folder)!r})\n"
        "assert agent.act(numpy.zeros(2)) in (-1, 0, 1)\n"
        "assert not {'ray', 'worldloom_dist', 'gone_env'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_without_spaces_and_env_is_one_sentence(tmp_path: Path) -> None:
    config = EnvConfig(env=f"{__name__}:OffsetEnv")
    folder = checkpoint(tmp_path / "saved", "dreamerv3:ci", config)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["facts"]["env"]["spaces"]
    manifest["facts"]["env"]["name"] = "no_such_module:Env"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigurationError, match="did not note the env's spaces, and the env can"):
        worldloom.load_agent(folder, trust_env=True)
    manifest["facts"]["env"]["name"] = f"{__name__}:OffsetEnv"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert worldloom.load_agent(folder, trust_env=True).action_space == OffsetEnv.action_space


def test_wrong_places_are_one_sentence(tmp_path: Path, old_runs: Path) -> None:
    run = tmp_path / "local-tdmpc2"
    shutil.copytree(old_runs / "local-tdmpc2", run)
    for path, says in [
        (tmp_path / "local-tdmpc", r"there is nothing at .*; did you mean local-tdmpc2\?; give"),
        (run / "config.json", "is a file; give the folder"),
        (tmp_path, "holds no agent; give a run folder"),
        (3, "path_or_run must be a text or a Path"),
    ]:
        with pytest.raises(ConfigurationError, match=says):
            worldloom.load_agent(path)  # type: ignore[arg-type]
    worldloom.create_world_model("mlp:small").save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigurationError, match="a world model that save_pretrained wrote"):
        worldloom.load_agent(tmp_path / "model")
    shutil.copytree(run / "checkpoints" / "best", tmp_path / "alone" / "best")
    with pytest.raises(ConfigurationError, match="of an earlier version outside of its run"):
        worldloom.load_agent(tmp_path / "alone" / "best")
    for name, value in (("device", "gpu"), ("seed", -1), ("threads", 0)):
        with pytest.raises(ConfigurationError, match=name):
            worldloom.load_agent(run, **{name: value})
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="a run with no checkpoint"):
        worldloom.load_agent(run)


def test_wrong_observations_are_one_sentence(old_runs: Path) -> None:
    agent = worldloom.load_agent(old_runs / "local-tdmpc2")
    with pytest.raises(ShapeMismatchError, match=r"expected \(3,\), got \(4,\)"):
        agent.act(np.zeros(4, np.float32))
    with pytest.raises(EnvFailureError, match="not finite"):
        agent.act(np.full(3, np.nan, np.float32))
    with pytest.raises(ConfigurationError, match=r"obs, info = env\.reset\(\)"):
        agent.act((np.zeros(3, np.float32), {}))
    with pytest.raises(StateError, match="was loaded from"):
        agent.train(10)


def test_the_program_s_threads_stay_as_they_are(old_runs: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        worldloom.load_agent(old_runs / "local-tdmpc2").act(np.zeros(3, np.float32))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_saved_agent_acts_alike_and_replaces_nothing_else(old_runs: Path, tmp_path: Path) -> None:
    agent = worldloom.load_agent(old_runs / "local-dreamerv3")
    copy = worldloom.load_agent(agent.save(tmp_path / "mine"))
    obs = np.ones(3, np.float32)
    np.testing.assert_array_equal(agent.act(obs), copy.act(obs))
    assert copy.save(tmp_path / "mine") == tmp_path / "mine"
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigurationError, match="holds no agent; name a folder"):
        agent.save(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="is a checkpoint of a run"):
        agent.save(old_runs / "local-dreamerv3" / "checkpoints" / "best")


def test_an_agent_trains_acts_and_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    agent = worldloom.Agent(
        "tdmpc2:ci",
        env="toy:point",
        preset="debug",
        run_dir=tmp_path / "run",
        agent_settings={"batch_size": 8, "prefill_agent_steps": 60, "num_samples": 8},
        train_ratio=3.0,
        eval_episodes=1,
    )
    with pytest.raises(StateError, match="not trained; call train"):
        agent.act(np.zeros(4, np.float32))
    result = agent.train(80)
    assert (result.status, result.run_dir) == ("completed", tmp_path / "run")
    assert result.env_steps >= 80
    assert result.train_steps > 0
    assert result.return_mean is not None
    assert agent.action_space.contains(agent.act(np.zeros(4, np.float32)))
    assert "--agent.batch-size=8" in (tmp_path / "run" / "command.txt").read_text()
    more = agent.train(10)
    assert more.env_steps >= result.env_steps + 10
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["runtime"] == "local"


def test_wrong_settings_are_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)

    def tried(*words: Any, **settings: Any) -> None:
        worldloom.Agent(*words, **settings).train(1_500)

    for words, settings, says in [
        (("tdmpc2:ci",), {}, "env must name an environment"),
        ((3, "toy:point"), {}, "agent must be algorithm:preset"),
        (("tdmpc2:ci", "toy:point"), {"replay": {"capcity_steps": 3}}, "did you mean"),
        (("tdmpc2:ci", "toy:point"), {"env_steps": 3}, r"give it to train\(steps\)"),
        (("tdmpc2:ci", "toy:point"), {"runtime": "ray"}, "train runs in this process"),
        (("tdmpc2:ci", lambda: None), {}, "a class that makes an env"),
        (("tdmpc2:ci", f"{__name__}:OffsetEnv"), {}, "continuous action spaces only"),
    ]:
        with pytest.raises(ConfigurationError, match=says):
            tried(*words, **settings)
    with pytest.raises(ConfigurationError, match="steps must be"):
        worldloom.Agent("tdmpc2:ci", OffsetEnv).train(0)
    assert not (tmp_path / "runs").exists()


def test_the_readme_s_lines_act(old_runs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    block = next(code for code in readme.split("```python\n")[1:] if "load_agent" in code)
    code = block.partition("```")[0]
    assert len(code.strip().splitlines()) <= 6, "five lines, and one between them"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quick-0001").symlink_to(old_runs / "local-dreamerv3")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["truncated"]
    names["env"].close()


@pytest.mark.parametrize(
    ("env", "agent"),
    [
        (OffsetEnv, "dreamerv3:ci"),
        (UnitsEnv, "dreamerv3:ci"),
        (PictureEnv, "dreamerv3:ci"),
        (UnitsEnv, "tdmpc2:ci"),
    ],
)
def test_several_envs_are_acted_in_side_by_side(tmp_path: Path, env: Any, agent: str) -> None:
    settings = {"image_size": 64, "frame_stack": 2} if env is PictureEnv else {}
    config = EnvConfig(env=f"{__name__}:{env.__name__}", **settings)
    path = checkpoint(tmp_path / "c", agent, config)
    envs = gymnasium.vector.SyncVectorEnv([env] * 3)
    envs.action_space.seed(0)
    loaded = worldloom.load_agent(path, num_envs=3)
    obs, _ = envs.reset(seed=[1, 2, 3])
    is_first = np.ones(3, bool)
    for _ in range(6):
        action = loaded.act(obs, is_first)
        assert envs.action_space.contains(action)
        obs, _, terminated, truncated, _ = envs.step(action)
        is_first = terminated | truncated
    envs.close()


def test_each_env_of_a_batch_is_acted_in_as_if_it_were_alone(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "c", "dreamerv3:ci", EnvConfig(env=f"{__name__}:OffsetEnv"))
    draw = np.random.default_rng(0)
    obs = draw.normal(size=(5, 3, 2))
    batch = worldloom.load_agent(path, num_envs=3)
    firsts = np.zeros((5, 3), bool)
    firsts[0] = True
    firsts[3, 1] = True
    together = [batch.act(obs[t], firsts[t]) for t in range(5)]
    assert np.shape(together) == (5, 3)
    twin = worldloom.load_agent(path, num_envs=3)
    for t in range(5):
        twin.act(obs[t], firsts[t])
    batch.reset()
    assert np.array_equal(batch.act(obs[0]), twin.act(obs[0], True)), "all episodes begin"
    again = worldloom.load_agent(path, num_envs=3)
    other = obs.copy()
    other[:, 2] = 0.0
    apart = [again.act(other[t], firsts[t]) for t in range(5)]
    assert np.array_equal(np.array(apart)[:, :2], np.array(together)[:, :2])


def test_wrong_batches_are_one_sentence(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "c", "dreamerv3:ci", EnvConfig(env=f"{__name__}:OffsetEnv"))
    agent = worldloom.load_agent(path, num_envs=3)
    with pytest.raises(ShapeMismatchError, match="3 envs, got 2"):
        agent.act(np.zeros((2, 2)))
    with pytest.raises(ShapeMismatchError, match="is_first"):
        agent.act(np.zeros((3, 2)), [True, False])
    with pytest.raises(ConfigurationError, match="num_envs must be"):
        worldloom.load_agent(path, num_envs=0)


def weights_of(saved: Path) -> dict[str, torch.Tensor]:
    return dict(SavedAgent.read(saved).build(device="cpu", seed=0).networks.tensors())


def test_weights_are_rounded_as_the_run_rounds_them(tmp_path: Path) -> None:
    path = checkpoint(
        tmp_path / "run/checkpoints/c", "dreamerv3:ci", EnvConfig(env=f"{__name__}:OffsetEnv")
    )
    run = {"learner": {"weights_dtype": "bfloat16"}}
    (tmp_path / "run/config.json").write_text(json.dumps({"run": run}))
    halves = {key: value for key, value in weights_of(path).items() if value.is_floating_point()}
    assert halves
    assert all(torch.equal(v, v.bfloat16().to(v.dtype)) for v in halves.values())
    copy = worldloom.load_agent(path).save(tmp_path / "copy")
    assert all(torch.equal(weights_of(copy)[key], value) for key, value in halves.items())
    run["learner"]["weights_dtype"] = "float32"
    (tmp_path / "run/config.json").write_text(json.dumps({"run": run}))
    whole = weights_of(path)
    assert any(not torch.equal(whole[key], value) for key, value in halves.items())
