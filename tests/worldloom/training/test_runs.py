"""The world model of a run folder is the very one that the run trained."""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from worldloom import create_world_model, get_config
from worldloom.algorithms.dreamerv3.networks import Networks
from worldloom.algorithms.model_registry import WorldModelRegistry
from worldloom.algorithms.registry import make_agent, make_agent_config, trained_config
from worldloom.algorithms.tdmpc2.agent import make_architecture
from worldloom.algorithms.tdmpc2.networks import TDMPC2Networks
from worldloom.algorithms.tdmpc2.spec import resolve
from worldloom.core.exceptions import CheckpointError, ConfigurationError, ModelNotFoundError
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.training.tree_files import load_tree

ARCHIVE = Path(__file__).parents[2] / "data/runs-0.2.0.tar.gz"
NAMES = ("local-dreamerv3", "local-tdmpc2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def agent_of(run: Path, checkpoint: str) -> Any:
    facts = json.loads((run / "config.json").read_text())
    settings = dict(facts["agent"])
    config = make_agent_config(settings.pop("name"), settings)
    agent = make_agent(config, EnvSpec.from_dict(facts["env"]), seed=5)
    agent.load_state_dict(load_tree(run / "checkpoints" / checkpoint)["learner"]["agent"])
    return agent


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_run_s_parameters_bit_for_bit(runs: Path, name: str) -> None:
    agent = agent_of(runs / name, "step-000000000151")
    model = create_world_model(runs / name)
    is_dreamer = name.endswith("dreamerv3")
    network = agent.all_networks.model if is_dreamer else agent.model
    assert_equal(model.net.state_dict(), network.state_dict())
    if not is_dreamer:
        assert_equal(model.target.state_dict(), agent.target.state_dict())
        assert torch.equal(model.scale, agent.updater.scale)
    assert (model.config.obs_shape, model.config.action_dim) == ((3,), 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_named_by_its_folder(runs: Path, name: str) -> None:
    folder = runs / name / "checkpoints"
    newest = create_world_model(runs / name).state_dict()
    for place in (folder, folder / "step-000000000151", folder / "best"):
        assert_equal(create_world_model(str(place)).state_dict(), newest)
    assert get_config(runs / name).to_dict() == create_world_model(runs / name).config.to_dict()


@torch.no_grad()
def test_dreamer_encodes_and_imagines_what_the_agent_s_model_computes(runs: Path) -> None:
    net = agent_of(runs / NAMES[0], "best").all_networks.model
    model = create_world_model(runs / NAMES[0])
    obs = torch.randn(4, 3)
    action = torch.rand(4, 1) * 2 - 1
    w = net.weights()
    token = net.enc({"obs": obs})
    draws = torch.zeros(4, net.sizes.stoch)
    start = net.dyn.initial(4)
    state, logits, _ = net.dyn.observe_step(
        w, start, torch.zeros(4, 1), token, torch.zeros(4, 1), draws
    )
    ours = model.encode(obs, deterministic=True)
    assert torch.equal(ours.deterministic, state.deter)
    assert torch.equal(ours.logits, logits)
    _, classes = net.dyn.imagine_step(
        w, state._replace(stoch=ours.stochastic.flatten(1)), action, draws
    )
    following = model.predict(ours, action, deterministic=True)
    assert torch.equal(following.logits, classes)
    trajectory = model.imagine(ours, action[None], deterministic=True)
    feature = trajectory.states[1].features
    assert torch.equal(feature, following.features)
    assert torch.equal(trajectory.rewards[0, :, 0], net.reward(feature))
    scale = 1 - 1 / 333  # the head holds the discount, the public model reports probabilities
    assert torch.equal(trajectory.continues[0, :, 0], (net.cont(feature) / scale).clamp(max=1))


@torch.no_grad()
def test_tdmpc2_encodes_and_imagines_what_the_agent_s_model_computes(runs: Path) -> None:
    agent = agent_of(runs / NAMES[1], "best")
    model = create_world_model(runs / NAMES[1])
    obs = torch.randn(4, 3)
    action = torch.rand(4, 1) * 2 - 1
    z = agent.model.encode({"obs": obs})
    state = model.encode(obs)
    assert torch.equal(state.features, z)
    assert torch.equal(model.predict(state, action).features, agent.model.next_latent(z, action))
    trajectory = model.imagine(state, action[None])
    assert torch.equal(trajectory.rewards[0, :, 0], agent.model.reward(z, action))
    assert model.config.gamma == agent.discount
    saved = (model.config.horizon, model.config.num_samples, model.config.num_elites)
    assert saved == (3, 8, 2)


def test_it_can_be_saved_and_trained_like_any_model(runs: Path, tmp_path: Path) -> None:
    for name in NAMES:
        model = create_world_model(runs / name)
        model.save_pretrained(tmp_path / name)
        assert_equal(create_world_model(tmp_path / name).state_dict(), model.state_dict())
        batch = {"obs": torch.randn(2, 5, 3), "actions": torch.zeros(2, 5, 1)}
        batch |= {"rewards": torch.zeros(2, 5), "continues": torch.ones(2, 5)}
        assert torch.isfinite(model.compute_loss(batch)["loss"])


def test_what_is_no_run_is_one_sentence(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "local-tdmpc2"
    shutil.copytree(runs / "local-tdmpc2", run)
    with pytest.raises(ModelNotFoundError, match=r"checkpoints/bst'; did you mean best\?$"):
        create_world_model(run / "checkpoints" / "bst")
    with pytest.raises(ModelNotFoundError, match=r"local-tdmpc'; did you mean local-tdmpc2\?$"):
        create_world_model(tmp_path / "local-tdmpc")
    with pytest.raises(ConfigurationError, match=r"obs_shape: the model in .* \(3,\), got \(4,\)"):
        create_world_model(run, obs_shape=(4,))
    shutil.copytree(run / "checkpoints" / "best", tmp_path / "lonely")
    with pytest.raises(ConfigurationError, match="outside of its run"):
        create_world_model(tmp_path / "lonely")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="neither a saved model nor a run"):
        create_world_model(tmp_path / "empty")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match=r"a run with no checkpoint in .*until it writes"):
        create_world_model(run)
    facts = json.loads((run / "config.json").read_text())
    facts["env"]["obs"]["other"] = facts["env"]["obs"]["obs"]
    (run / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigurationError, match=r"2 observation keys \(obs, other\)"):
        create_world_model(run)
    del facts["agent"]
    (run / "config.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="does not say which agent"):
        create_world_model(run)


def test_a_checkpoint_of_another_run_is_told_apart(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "local-tdmpc2", run)
    facts = json.loads((run / "config.json").read_text())
    facts["agent"]["mlp_dim"] = 24
    (run / "config.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"expected shape .*24.* got .*different runs"):
        create_world_model(run)


def test_no_ray_is_needed(runs: Path) -> None:
    code = (
        "import sys, worldloom; worldloom.create_world_model(sys.argv[1]); "
        "sys.exit('ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(runs / NAMES[1])], check=False, timeout=120
    )
    assert done.returncode == 0


SPACES = {
    "vector": ({"obs": ArraySpec((5,))}, {"action": ArraySpec((3,))}),
    "scalar": ({"height": ArraySpec(())}, {"torque": ArraySpec((2, 2))}),
    "matrix": ({"obs": ArraySpec((2, 3))}, {"action": ArraySpec((1,))}),
    "image": ({"camera": ArraySpec((64, 64, 3), "uint8")}, {"action": ArraySpec((2,))}),
    "channels first": ({"obs": ArraySpec((3, 64, 64), "uint8")}, {"action": ArraySpec((2,))}),
    "cube of numbers": ({"obs": ArraySpec((2, 2, 2))}, {"action": ArraySpec((2,))}),
    "choice": ({"obs": ArraySpec((4,))}, {"action": ArraySpec((), "int64", (5,))}),
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "dreamerv3:ci": {"units": 24, "hidden": 16, "blocks": 4, "space_blocks": 2, "bins": 31},
    "tdmpc2:ci": {"num_channels": 8, "num_bins": 21, "encoder_layers": 3, "simnorm_dim": 4},
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", OVERRIDES)
def test_every_space_and_size_of_a_run_has_its_public_network(name: str, space: str) -> None:
    obs, action = SPACES[space]
    env = EnvSpec(name="toy:x", obs=obs, action=action)
    config: Any = make_agent_config(name, OVERRIDES[name])
    is_dreamer = name.startswith("dreamerv3")
    if not is_dreamer and space == "choice":
        return
    if not is_dreamer and space == "cube of numbers":
        with pytest.raises(ConfigurationError, match="three axes"):
            trained_config(config, env, "meta")
        return
    with torch.device("meta"):
        if is_dreamer:
            theirs: torch.nn.Module = Networks(config, env).model
        else:
            theirs = TDMPC2Networks(make_architecture(resolve(config, env), env))
        model = WorldModelRegistry.build(trained_config(config, env, "meta"))
    shapes = [
        {name: value.shape for name, value in net.state_dict().items()}
        for net in (model.net, theirs)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("obs", "action", "says"),
    [
        (
            {"obs": ArraySpec((), "int64", (3,))},
            {"action": ArraySpec((2,))},
            "choice among classes",
        ),
        ({"obs": ArraySpec((3,))}, {"action": ArraySpec((2,), "int64", (2, 3))}, "2 discrete"),
        (
            {"obs": ArraySpec((3,))},
            {"arm": ArraySpec((2,)), "leg": ArraySpec((2,))},
            r"2 action keys \(arm, leg\)",
        ),
    ],
)
def test_what_the_public_api_cannot_read_is_told(obs: Any, action: Any, says: str) -> None:
    env = EnvSpec(name="toy:x", obs=obs, action=action)
    with pytest.raises(ConfigurationError, match=says):
        trained_config(make_agent_config("dreamerv3:ci"), env, "cpu")
