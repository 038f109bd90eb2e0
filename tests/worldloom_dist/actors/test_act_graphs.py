"""Decisions captured as CUDA graphs: the logic with a fake, the promises of the policies on a CPU,
the real thing on a GPU.
"""

import gc
import logging
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from worldloom.algorithms.registry import make_agent_config, make_policy
from worldloom.core.protocol import Capturable
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.core.weights import WeightsSnapshot
from worldloom.nn.snapshot import pack
from worldloom_dist.actors import act_graphs
from worldloom_dist.actors.act_graphs import WARM_UPS, DecisionGraphs, capture_decisions
from worldloom_dist.actors.acting import ActRequest
from worldloom_dist.actors.inference import InferenceServer

VECTOR = EnvSpec(name="toy", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((2,))})
PIXELS = EnvSpec(
    name="toy", obs={"image": ArraySpec((64, 64, 3), "uint8")}, action={"action": ArraySpec((2,))}
)
TDMPC2 = {
    "num_samples": 8,
    "num_elites": 2,
    "num_policy_samples": 2,
    "iterations": 2,
    "latent_dim": 16,
    "mlp_dim": 16,
}
TDMPC2 |= {"encoder_dim": 16}
AGENTS = {"tdmpc2": ("tdmpc2:ci", TDMPC2), "dreamerv3": ("dreamerv3:ci", {})}
PRECISIONS = [("tdmpc2", "float32"), ("dreamerv3", "float32"), ("dreamerv3", "bfloat16")]
"""Acting in bfloat16, DreamerV3's way on CUDA, reads copies of its weights. TD-MPC2 acts in
float32.
"""
SIZES = (1, 2, 4)


def policy_of(name, env=VECTOR, device="cpu", **settings):
    preset, own = AGENTS[name]
    return make_policy(make_agent_config(preset, own | settings), env, device=device, seed=3)


def perturbed(policy) -> WeightsSnapshot:
    tensors = (
        policy.networks.tensors() if hasattr(policy, "networks") else policy.model.state_dict()
    )
    generator = torch.Generator().manual_seed(8)
    noise = {name: torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
    return pack(
        {
            name: t.cpu() + 0.3 * noise[name] if t.is_floating_point() else t
            for name, t in tensors.items()
        }
    )


def request(envs, step, env=VECTOR) -> ActRequest:
    rng = np.random.default_rng([step, len(envs)])
    obs = {
        key: (rng.normal(size=(len(envs), *spec.shape)) * 50).astype(spec.dtype)
        for key, spec in env.obs.items()
    }
    return ActRequest(0, 0, np.array(envs), obs, np.full(len(envs), step == 0))


class FakeCuda:
    """One recorded graph: it keeps the work, and a replay writes into the very tensors that
    capturing returned.

    Capturing itself computes nothing, as on a GPU: what it returns is rubbish until the first
    replay.
    """

    def __init__(self, log, error=None):
        self.log = log
        self.error = error

    def warm(self, work):
        self.log.append("warm")
        return work()

    def capture(self, work):
        if self.error:
            raise self.error
        self.log.append("capture")
        self.work = work
        self.outputs = {name: tensor.clone() for name, tensor in work().items()}
        for tensor in self.outputs.values():
            tensor.fill_(99)
        return self.outputs

    def replay(self):
        self.log.append("replay")
        for name, tensor in self.work().items():
            self.outputs[name].copy_(tensor)


def graphed(policy, log, error=None, sizes=SIZES):
    policy.decide_through(
        lambda decide: DecisionGraphs(decide, sizes, lambda: FakeCuda(log, error))
    )
    return policy


def doubling(seen):
    def decide(inputs, *, explore):
        seen.append(tuple(tensor.data_ptr() for tensor in inputs.values()))
        return {"out": inputs["x"] * 2 + float(explore)}

    return decide


def test_each_size_is_captured_once_and_replayed_from_the_same_memory():
    log = []
    seen = []
    decide = DecisionGraphs(doubling(seen), SIZES, lambda: FakeCuda(log))
    results = [
        decide({"x": torch.full((rows, 3), float(step))}, explore=False)["out"]
        for step, rows in enumerate((2, 4, 2, 4, 2))
    ]
    once = ["warm"] * WARM_UPS + ["capture", "replay"]
    assert log == [*once, *once, "replay", "replay", "replay"]
    assert len(set(seen)) == 2, "one set of static inputs per size"
    assert (
        [float(result.min()) for result in results]
        == [float(result.max()) for result in results]
        == [0, 2, 4, 6, 8]
    )


def test_exploring_and_other_dtypes_have_graphs_of_their_own():
    log = []
    decide = DecisionGraphs(doubling([]), SIZES, lambda: FakeCuda(log))
    x = torch.ones(2, 1)
    assert [
        float(decide({"x": x}, explore=explore)["out"][0]) for explore in (True, False, True)
    ] == [3, 2, 3]
    assert decide({"x": x.double()}, explore=True)["out"].dtype == torch.float64
    assert log.count("capture") == 3


def test_size_that_was_not_foreseen_runs_eagerly():
    log = []
    decide = DecisionGraphs(doubling([]), SIZES, lambda: FakeCuda(log))
    assert decide({"x": torch.ones(3, 1)}, explore=False)["out"].tolist() == [[2.0]] * 3
    assert log == []


def test_what_cannot_be_captured_runs_eagerly_and_the_log_says_why_once(caplog):
    error = RuntimeError("operation not permitted when stream is capturing\nmore")
    log = []
    plain = policy_of("tdmpc2")
    policy = graphed(policy_of("tdmpc2"), log, error)
    with caplog.at_level(logging.INFO):
        answers = [
            InferenceServer(each, batch_sizes=SIZES).act_batch([request([0, 1], 0)])[0]
            for each in (plain, policy)
        ]
        InferenceServer(policy, batch_sizes=SIZES).act_batch([request([0], 0)])
    assert np.array_equal(answers[0].action["action"], answers[1].action["action"])
    why = (
        "decisions run eagerly: capturing one failed (operation not permitted when "
        "stream is capturing)"
    )
    assert [record.getMessage() for record in caplog.records] == [why]
    assert log == ["warm"] * WARM_UPS, "it is not tried again"


def test_a_graph_whose_recording_broke_lives_on_because_the_allocator_asks_it():
    made = []

    def make():
        made.append(weakref.ref(recorder := FakeCuda([], RuntimeError("broken"))))
        return recorder

    decide = DecisionGraphs(doubling([]), SIZES, make)
    decide({"x": torch.ones(2, 1)}, explore=False)
    gc.collect()
    assert [one() is not None for one in made] == [True]


@pytest.mark.parametrize(("name", "precision"), PRECISIONS)
def test_graphs_answer_as_the_eager_policy_does_over_steps_sizes_and_new_weights(name, precision):
    """Carries go through a server's table, so one that is overwritten by the next replay would
    show.
    """
    log = []
    plain = policy_of(name, precision=precision)
    policy = policy_of(name, precision=precision)
    weights = perturbed(plain)
    servers = [InferenceServer(each, batch_sizes=SIZES) for each in (plain, graphed(policy, log))]
    for step, envs in enumerate(
        ([0, 1, 2], [0, 1, 2], [2, 0, 1], [0, 1], [2], [2, 1, 0], [0, 1, 2])
    ):
        if step == 5:
            plain.load_weights(weights)
            policy.load_weights(weights)
        eager, replayed = (server.act_batch([request(envs, step)])[0] for server in servers)
        assert np.array_equal(eager.action["action"], replayed.action["action"]), step
        assert eager.extras.keys() == replayed.extras.keys()
        assert all(
            np.array_equal(eager.extras[key], replayed.extras[key]) for key in eager.extras
        ), step
    assert (log.count("capture"), log.count("replay")) == (3, 7)


@pytest.mark.parametrize("name", AGENTS)
def test_carries_and_actions_are_not_overwritten_by_the_next_decision(name):
    policy = graphed(policy_of(name), [])
    asked = request([0, 1], 0)
    first = policy.act(asked.obs, policy.initial_carry(2), asked.is_first, explore=True)
    kept = {key: np.array(value) for key, value in {**first.carry, **first.action}.items()}
    policy.act(request([0, 1], 1).obs, first.carry, np.zeros(2, bool), explore=True)
    assert all(
        np.array_equal(kept[key], value) for key, value in {**first.carry, **first.action}.items()
    )


@pytest.mark.parametrize(("name", "precision"), PRECISIONS)
def test_new_weights_change_no_address_that_a_captured_decision_reads(name, precision):
    """A graph reads fixed addresses; weights that lay elsewhere after a pull would leave it with
    the old ones.
    """
    read: list[set[int]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            flat = torch.utils._pytree.tree_leaves((args, kwargs or {}))
            read[-1] |= {
                t.untyped_storage().data_ptr() for t in flat if isinstance(t, torch.Tensor)
            } & everything
            return func(*args, **(kwargs or {}))

    policy = policy_of(name, precision=precision)

    def watched(decide):
        def run(inputs, *, explore):
            read.append(set())
            with Watch():
                return decide(inputs, explore=explore)

        return run

    policy.decide_through(watched)
    asked = request([0, 1], 0)
    everything = set()
    policy.act(asked.obs, policy.initial_carry(2), asked.is_first, explore=True)
    held = [*vars(policy).get("_cell", ())] if name == "dreamerv3" else []
    tensors = policy.networks.tensors() if name == "dreamerv3" else policy.model.state_dict()
    everything |= {t.untyped_storage().data_ptr() for t in [*held, *tensors.values()]}
    policy.act(asked.obs, policy.initial_carry(2), asked.is_first, explore=True)
    policy.load_weights(perturbed(policy))
    policy.act(asked.obs, policy.initial_carry(2), asked.is_first, explore=True)
    assert len(read[1]) > 10
    assert read[2] == read[1]


class NothingForTheHost(TorchDispatchMode):
    """Refuses what a graph cannot hold: draws, and whatever involves two devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert torch.Tag.nondeterministic_seeded not in func.tags, f"{func} draws"
        out = func(*args, **(kwargs or {}))
        found = [
            t
            for t in torch.utils._pytree.tree_leaves((args, kwargs or {}, out))
            if isinstance(t, torch.Tensor)
        ]
        devices = {t.device.type for t in found}
        assert len(devices) <= 1, f"{func} touches {sorted(devices)}"
        return out


def check_pure(decide, inputs):
    """Run a decision on torch's device without values: to read one, or a shape that hangs on one,
    is an error there.
    """
    blank = {name: torch.empty_like(tensor, device="meta") for name, tensor in inputs.items()}
    with torch.no_grad(), NothingForTheHost():
        outputs = decide(blank, explore=True)
    assert all(len(tensor) == len(next(iter(inputs.values()))) for tensor in outputs.values())
    assert {tensor.device.type for tensor in outputs.values()} == {"meta"}


@pytest.mark.parametrize("env", [VECTOR, PIXELS], ids=["vector", "pixels"])
@pytest.mark.parametrize("name", AGENTS)
def test_decision_reads_no_value_draws_nothing_and_stays_on_its_device(name, env):
    policy = policy_of(name, env)
    seen = {}
    decisions = []

    def watched(decide):
        def run(inputs, *, explore):
            seen.update(inputs)
            return decide(inputs, explore=explore)

        decisions.append(decide)
        return run

    policy.decide_through(watched)
    asked = request([0, 1], 0, env)
    policy.act(asked.obs, policy.initial_carry(2), asked.is_first, explore=True)
    policy.device = torch.device("meta")
    for module in policy.networks if name == "dreamerv3" else [policy.model]:
        module.to("meta")
    if name == "dreamerv3":
        policy.cell = type(policy.cell)(*(tensor.to("meta") for tensor in policy.cell))
    check_pure(decisions[0], seen)


@pytest.mark.parametrize(
    ("impure", "says"),
    [
        (lambda x: x * float(x.sum()), "item"),
        (lambda x: x[x[:, 0] > 0], "nonzero"),
        (lambda x: x + torch.rand_like(x), "draws"),
        (lambda x: x.cpu(), "meta"),
        (lambda x: x + torch.zeros(1).to("meta"), "touches"),
    ],
)
def test_the_check_of_purity_can_fail(impure, says):
    with pytest.raises((AssertionError, RuntimeError), match=says):
        check_pure(lambda inputs, *, explore: {"out": impure(inputs["x"])}, {"x": torch.ones(2, 2)})


def test_only_a_policy_on_cuda_is_touched_and_what_stays_eager_is_said(monkeypatch, caplog):
    policy = policy_of("tdmpc2")
    held = []

    def look(decide):
        held.append(decide)
        return decide

    policy.decide_through(look)
    with caplog.at_level(logging.INFO):
        capture_decisions(policy, "cpu", SIZES)
        capture_decisions(policy, "cuda", SIZES, wanted=False)
        capture_decisions(object(), "cuda", SIZES)
    policy.decide_through(look)
    assert held[0] == held[1]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "decisions run eagerly: actors.cuda_graphs is off",
        "decisions run eagerly: object has no decision that could be captured",
    ]
    made = []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(
        act_graphs,
        "CudaRecorder",
        lambda *args, **kwargs: made.append((args, kwargs)) or FakeCuda([]),
    )
    capture_decisions(policy, "cuda:1", SIZES)
    InferenceServer(policy, batch_sizes=SIZES).act_batch([request([0, 1, 2], 0)])
    assert made == [((torch.device("cuda:1"),), {"pool": (0, 1)})]


@pytest.mark.parametrize("name", AGENTS)
def test_policies_of_both_agents_can_be_captured(name):
    assert isinstance(policy_of(name), Capturable)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("env", [VECTOR, PIXELS], ids=["vector", "pixels"])
@pytest.mark.parametrize("name", AGENTS)
def test_captured_decisions_equal_eager_ones_on_cuda(name, env, caplog):
    """Each step begins from the eager carries, so a rounding difference cannot grow; draws are the
    same ones.
    """
    eager, captured = (policy_of(name, env, "cuda", precision="float32") for _ in range(2))
    carries: dict = {}
    with caplog.at_level(logging.INFO):
        capture_decisions(captured, "cuda", SIZES)
        for step, rows in enumerate((4, 4, 2, 1, 4, 2, 4)):
            if step == 4:
                weights = perturbed(eager)
                eager.load_weights(weights)
                captured.load_weights(weights)
            asked = request(list(range(rows)), step, env)
            carry = carries.get(rows) or eager.initial_carry(rows)
            theirs = eager.act(asked.obs, carry, asked.is_first, explore=True)
            carries[rows] = theirs.carry
            mine = captured.act(asked.obs, carry, asked.is_first, explore=True)
            np.testing.assert_allclose(
                mine.action["action"], theirs.action["action"], atol=1e-3, err_msg=str(step)
            )
            for key, value in theirs.carry.items():
                np.testing.assert_allclose(
                    *(torch.as_tensor(x).cpu().numpy() for x in (mine.carry[key], value)), atol=1e-3
                )
    assert "decisions run as captured CUDA graphs" in caplog.text
    assert "eagerly" not in caplog.text
