"""Files of tensors that lie about their sizes, or hold more than tensors."""

import collections
import io
import os
import pickle
import resource
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worldloom_dist.replay.test_hostile_episode_files import mutated
from worldloom import create_world_model
from worldloom.algorithms.registry import make_agent, make_agent_config
from worldloom.core.exceptions import CheckpointError
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import env_spec
from worldloom.models.tdmpc2.official import load_official
from worldloom.nn.tensor_files import Allowance, read_tensors
from worldloom.training.saved_agents import SavedAgent


def saved(content, path):
    torch.save(content, path)
    return path


def test_tensors_in_containers_come_back(tmp_path):
    shared = torch.arange(6.0)
    content = {
        "a": shared,
        "b": [shared.view(2, 3), {"c": torch.ones(2, dtype=torch.int8)}],
        "n": 3,
    }
    found = read_tensors(saved(content, tmp_path / "f.pt"))
    assert torch.equal(found["b"][0], shared.view(2, 3))
    assert found["n"] == 3
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(tmp_path / "old.pt")["a"], shared)


@pytest.mark.parametrize(
    "content",
    [
        {"x": torch.zeros(1).expand(2_000_000, 512)},
        {"x": torch.zeros(4).as_strided((10, 10), (0, 0))},
        {"x": torch.zeros(3).to_sparse()},
        {"x": torch.zeros(10**12, device="meta")},
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_claim_what_the_file_has_not_are_refused(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"f\.pt"):
        read_tensors(saved(content, tmp_path / "f.pt"))


def test_many_views_of_one_storage_are_refused(tmp_path):
    whole = torch.zeros(500_000)
    content = {f"x{n}": whole.view(-1) for n in range(100)}
    with pytest.raises(CheckpointError, match="its tensors would take"):
        read_tensors(saved(content, tmp_path / "f.pt"))


def test_a_list_that_holds_itself_ends(tmp_path):
    content = {"x": torch.zeros(3)}
    content["self"] = [content]
    assert read_tensors(saved(content, tmp_path / "f.pt"))["x"].shape == (3,)


def test_deflated_records_are_refused_before_they_are_read(tmp_path):
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(4)}, buffer)
    path = tmp_path / "f.pt"
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as out:
        for member in source.infolist():
            data = source.read(member)
            if member.filename.endswith("data/0"):
                data = bytes(64 << 20)
            out.writestr(member.filename, data, compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="its records claim"):
        read_tensors(path)


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("raw", [True, False])
def test_what_would_be_executed_is_named_without_advice_to_run_it(tmp_path, raw):
    path = tmp_path / "f.pt"
    if raw:
        path.write_bytes(pickle.dumps(Evil()))
    else:
        saved({"x": Evil()}, path)
    with pytest.raises(CheckpointError, match="do not trust it") as caught:
        read_tensors(path)
    said = str(caught.value)
    assert "weights_only" not in said
    assert "re-running" not in said
    assert raw or "posix.system" in said


@given(
    op=st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]),
    place=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 255),
    is_old=st.booleans(),
)
@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_only_the_documented_error(tmp_path, op, place, seed, is_old):
    buffer = io.BytesIO()
    content = collections.OrderedDict(model={"w": torch.ones(3, 4), "b": torch.zeros(4)})
    torch.save(content, buffer, _use_new_zipfile_serialization=not is_old)
    path = tmp_path / "f.pt"
    path.write_bytes(mutated(buffer.getvalue(), op, place, seed))
    for reader in (read_tensors, load_official):
        try:
            reader(path)
        except CheckpointError:
            continue


def test_an_allowance_refuses_a_tensor_before_it_is_allocated():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Allowance(1000, "too large"):
        torch.zeros(10, 10)
        torch.nn.Linear(3, 4)
    with pytest.raises(CheckpointError, match="too large"), Allowance(1000, "too large"):
        torch.empty(2**20, 2**20)
    with pytest.raises(CheckpointError, match="too large"), Allowance(1000, "too large"):
        torch.nn.Linear(40_000, 40_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("preset", ["mlp:ci", "tdmpc2:ci", "dreamerv3:ci"])
def test_a_saved_model_loads_within_its_allowance(tmp_path, preset):
    model = create_world_model(preset, obs_shape=(3,), action_dim=2, device="cpu")
    model.save_pretrained(tmp_path / "model")
    again = create_world_model(str(tmp_path / "model"))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


@pytest.mark.parametrize("width", [40_000, 10**6])
def test_a_config_of_a_network_that_its_weights_are_not_is_refused(tmp_path, width):
    model = create_world_model("mlp:ci", obs_shape=(3,), action_dim=2, device="cpu")
    model.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    text = config.read_text()
    found = next(line for line in text.splitlines() if '"hidden_dim"' in line)
    config.write_text(text.replace(found, f'  "hidden_dim": {width},'))
    with pytest.raises(CheckpointError, match="far larger than its weights"):
        create_world_model(str(tmp_path / "model"))


def test_an_official_file_of_stride_zero_is_refused(tmp_path):
    def tensor(*shape):
        return torch.zeros(1).expand(*shape)

    state = {}
    for name, out, size in (("_dynamics.0", 20_000, 518), ("_dynamics.1", 20_000, 20_000)):
        state[f"{name}.weight"] = tensor(out, size)
    path = Path(saved({"model": state}, tmp_path / "f.pt"))
    assert path.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match="it is damaged or hostile"):
        load_official(path)


def test_a_saved_agent_of_another_size_than_its_weights_is_refused(tmp_path):
    env = env_spec(EnvConfig(env="toy:point"))
    agent = make_agent(make_agent_config("tdmpc2:ci", {}), env, device="cpu", seed=0)

    def build(**settings):
        settings = {"name": "tdmpc2:ci", **settings}
        saved = SavedAgent(tmp_path, settings, env, agent.state_dict(), "float32")
        return saved.build(device="cpu", seed=0)

    assert build() is not None
    with pytest.raises(CheckpointError, match="far larger than its weights"):
        build(mlp_dim=100_000)
