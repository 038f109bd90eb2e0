"""Networks, losses, gradients, one update and acting agree with the reference arrays of both tiny
models.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden_support import assert_agrees
from tests.worldloom.algorithms.dreamerv3.dreamer_reference import (
    CONSTANTS,
    GRADIENT,
    VARIANTS,
    Golden,
    assert_close,
)
from worldloom.algorithms.dreamerv3.context import split_context
from worldloom.algorithms.dreamerv3.networks import LossOutput, Networks
from worldloom.algorithms.dreamerv3.returns import NormalizerState
from worldloom.algorithms.dreamerv3.rssm import State
from worldloom.core.sequence import SequenceBatch
from worldloom.nn.dense import Dense
from worldloom.nn.distributions import bounded_normal, two_hot_mean
from worldloom.nn.optim import LaProp, LaPropConfig

pytestmark = [pytest.mark.golden, pytest.mark.parametrize("variant", VARIANTS)]


@functools.cache
def case(variant: str) -> tuple[Golden, Networks, LossOutput, dict[str, Tensor]]:
    """Golden arrays, networks with the reference parameters, their loss, and its gradients by our
    names.
    """
    golden = Golden.load(variant)
    networks = golden.networks()
    state = NormalizerState(
        golden.tensor("param/retnorm/lo/value"),
        golden.tensor("param/retnorm/hi/value"),
        torch.zeros(()),
    )
    out = networks.loss(golden.batch, golden.draws, state)
    params = networks.trained()
    grads = torch.autograd.grad(out.total, list(params.values()), retain_graph=True)
    return golden, networks, out, dict(zip(params, grads, strict=True))


def test_filtering_agrees(variant: str) -> None:
    golden, networks, out, _ = case(variant)
    assert_close(networks.model.tokens(golden.batch.obs), golden["out/tokens"], "tokens")
    posterior = out.posterior
    assert_close(posterior.deter, golden["out/obs/deter"], "deter")
    assert_close(posterior.logits, golden["out/obs/post_logit"], "posterior logits")
    assert_close(posterior.stoch, golden["out/obs/stoch"].reshape(posterior.stoch.shape), "stoch")
    assert_close(
        networks.model.dyn.prior_logits(posterior.deter),
        golden["out/obs/prior_logit"],
        "prior logits",
    )
    assert_close(posterior.feature, golden["out/feat"], "feature")


def test_heads_agree_on_replayed_states(variant: str) -> None:
    golden, networks, _, _ = case(variant)
    feature = golden.tensor("out/feat")
    model = networks.model
    for name, head in (
        ("rew", model.rew),
        ("val", networks.critic),
        ("slowval", networks.slow_critic),
    ):
        logits = head(feature)["logits"]
        assert_close(logits, golden[f"out/{name}/logits"], f"{name} logits")
        assert_close(
            two_hot_mean(logits, model.bins), golden[f"out/{name}/pred"], f"{name} prediction"
        )
    assert_close(model.con(feature)["logit"].squeeze(-1), golden["out/con/logit"], "con logit")
    assert_close(model.cont(feature), golden["out/con/prob1"], "con probability")
    policy = networks.actor(feature)
    assert_policy_agrees(golden, policy, "out/pol/")
    assert_close(networks.actor.entropies(policy)["action"], golden["out/pol/entropy"], "entropy")


def assert_policy_agrees(golden: Golden, policy: dict[str, Tensor], prefix: str) -> None:
    if golden.is_discrete:
        assert_close(
            policy["action/logits"].log_softmax(-1),
            log_softmax(golden[f"{prefix}logits"]),
            "policy",
        )
        return
    mean, std = bounded_normal(policy["action/mean"], policy["action/stddev"])
    assert_close(mean, golden[f"{prefix}mean"], "policy mean")
    assert_close(std, golden[f"{prefix}std"], "policy std")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).log_softmax(-1).numpy()


def test_decoder_agrees(variant: str) -> None:
    golden, networks, out, _ = case(variant)
    flat = [x.flatten(0, 1) for x in (out.posterior.deter, out.posterior.stoch)]
    raw = {
        k: v.unflatten(0, golden["in/obs/reward"].shape)
        for k, v in networks.model.dec.raw(*flat).items()
    }
    for name, expected in golden.under("out/dec/").items():
        if name.startswith("image"):
            got = raw["image"][int(name[7]), int(name[9])].permute(1, 2, 0)
        else:
            got = raw[name].reshape(expected.shape)
        assert_close(got, expected, name)


def test_imagination_agrees(variant: str) -> None:
    golden, networks, out, _ = case(variant)
    start = State(
        out.posterior.deter.detach().flatten(0, 1), out.posterior.stoch.detach().flatten(0, 1)
    )
    imagined = networks.imagine(networks.model.weights(), start, golden.draws)
    feature = imagined.feature.transpose(0, 1)
    deter = feature[:, 1:, : networks.model.sizes.deter]
    model = networks.model
    assert_close(deter, golden["out/img/deter"], "imagined deter")
    assert_close(
        model.dyn.prior_logits(deter), golden["out/img/prior_logit"], "imagined prior logits"
    )
    assert_close(model.reward(feature), golden["out/img/rew"], "imagined reward")
    assert_close(model.cont(feature), golden["out/img/con"], "imagined continuation")
    value = networks.critic(feature)["logits"]
    assert_close(value[:, 0], golden["out/img/val_logits_t0"], "value logits")
    assert_close(two_hot_mean(value, model.bins), golden["out/img/val"], "imagined value")
    slow = networks.slow_critic(feature)["logits"]
    assert_close(two_hot_mean(slow, model.bins), golden["out/img/slowval"], "imagined slow value")
    policy = networks.actor(feature)
    assert_policy_agrees(golden, policy, "out/img/pol_")
    assert_close(
        networks.actor.entropies(policy)["action"], golden["out/img/pol_ent"], "imagined entropy"
    )
    log_prob = networks.actor.log_prob(policy, imagined.action.transpose(0, 1))
    assert_close(log_prob, golden["out/img/pol_logp"], "log-probability")


def test_behavior_losses_agree_step_by_step(variant: str) -> None:
    golden, networks, out, _ = case(variant)
    start = State(
        out.posterior.deter.detach().flatten(0, 1), out.posterior.stoch.detach().flatten(0, 1)
    )
    imagined = networks.imagine(networks.model.weights(), start, golden.draws)
    state = NormalizerState(
        golden.tensor("param/retnorm/lo/value"),
        golden.tensor("param/retnorm/hi/value"),
        torch.zeros(()),
    )
    behavior = networks.behavior(imagined, state)[0]
    assert_close(behavior.returns, golden["out/img/ret"], "imagined returns")
    assert_close(behavior.policy, golden["out/img/loss_policy"], "policy loss")
    assert_close(behavior.value, golden["out/img/loss_value"], "value loss")
    feature = out.posterior.feature
    boot = behavior.returns[:, 0].reshape(golden["out/rep/boot"].shape)
    assert_close(boot, golden["out/rep/boot"], "bootstrap values")
    bins = networks.model.bins
    assert_close(
        two_hot_mean(networks.critic(feature)["logits"], bins),
        golden["out/rep/val"],
        "replayed value",
    )
    assert_close(
        two_hot_mean(networks.slow_critic(feature)["logits"], bins),
        golden["out/rep/slowval"],
        "replayed slow value",
    )
    loss, returns = networks.replay_loss(golden.batch, feature, boot)
    assert_close(returns, golden["out/rep/ret"], "replayed returns")
    assert_close(loss, golden["out/rep/loss_repval"], "replayed value loss")


def test_every_loss_and_metric_agrees(variant: str) -> None:
    golden, _, out, _ = case(variant)
    losses = {name.removeprefix("obs/"): value for name, value in out.losses.items()}
    assert losses.keys() == golden.under("out/loss/").keys()
    for name, value in losses.items():
        assert_close(value, golden[f"out/loss/{name}"], f"loss {name}")
    assert_close(out.total, golden["out/loss_total"], "total loss")
    for name, expected in golden.under("out/metric/").items():
        ours = out.metrics[name if name in out.metrics else name.replace("loss/", "loss/obs/")]
        assert_close(ours, expected, f"metric {name}")


def test_every_gradient_agrees(variant: str) -> None:
    golden, _, _, grads = case(variant)
    officials = golden.under("grad/")
    assert len(officials) == len(grads)
    for official, expected in officials.items():
        got = grads[golden.our_name(official)]
        assert_close(
            got, golden.to_ours(official, expected).numpy(), f"gradient {official}", GRADIENT
        )


def test_parameters_agree_after_one_update(variant: str) -> None:
    golden, _, out, grads = case(variant)
    networks = golden.networks()
    params = networks.trained()
    norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
    assert_close(norm, golden["after_global_grad_norm"], "global gradient norm")
    optimizer = LaProp(
        list(params.values()), LaPropConfig(lr=CONSTANTS["lr"], warmup=CONSTANTS["warmup"])
    )
    optimizer.step([g.clone() for g in grads.values()])
    networks.update_slow_critic(torch.tensor(golden.config.slow_rate))
    after = dict(networks.named_parameters())
    for official, expected in golden.under("after/").items():
        name = golden.our_name(official)
        if name is not None:
            assert_close(
                after[name], golden.to_ours(official, expected).numpy(), f"{official} after"
            )
            change = after[name].detach() - golden.to_ours(official, golden[f"param/{official}"])
            wanted = golden.to_ours(official, expected - golden[f"param/{official}"]).numpy()
            rounding = 2.0**-23 * float(np.abs(expected).max())
            assert_agrees(
                change, wanted, tolerance=GRADIENT, name=f"change of {official}", floor=rounding
            )
    assert_close(out.normalizer.first, golden["after/retnorm/lo/value"], "retnorm low")
    assert_close(out.normalizer.second, golden["after/retnorm/hi/value"], "retnorm high")
    assert golden["after/slowval_count/value"] == golden["param/slowval_count/value"] + 1


@torch.no_grad()
def test_acting_agrees_over_two_steps(variant: str) -> None:
    golden, networks, _, _ = case(variant)
    model = networks.model
    state = model.dyn.initial(len(golden["policy0/deter"]))
    action = torch.zeros(2, model.action_layout.width)
    for step in range(2):
        obs = {k: v.flatten(0, 0) for k, v in golden.obs(step + 1).items()}
        keep = 1.0 - golden.tensor(f"policy{step}/is_first").float().unsqueeze(-1)
        draws = golden.tensor(f"policy{step}/stoch").argmax(-1)
        state, _, _ = model.dyn.observe_step(
            model.weights(), state, action, model.enc(obs), keep, draws
        )
        assert_close(state.deter, golden[f"policy{step}/deter"], f"deter of step {step}")
        assert_close(
            state.stoch.reshape(golden[f"policy{step}/stoch"].shape),
            golden[f"policy{step}/stoch"],
            "stoch",
        )
        assert_policy_agrees(golden, networks.actor(torch.cat(state, -1)), f"policy{step}/")
        action = golden.encode_action(golden[f"policy{step}/action"])


@pytest.mark.parametrize("continued", ["0", "01"])
def test_context_split_agrees(variant: str, continued: str) -> None:
    golden, networks, _, _ = case(variant)
    extras = {
        "deter": golden.tensor("raw/dyn/deter"),
        "stoch": golden.tensor("raw/dyn/stoch").flatten(-2),
    }
    flags = [golden.tensor(f"raw/{name}") for name in ("is_first", "is_terminal", "is_last")]
    raw = SequenceBatch(
        golden.obs(slice(0, None)),
        {"action": golden.tensor("raw/action")},
        golden.tensor("raw/reward"),
        *flags,
        extras,
    )
    carried = State(
        golden.tensor("traincarry/deter"), golden.tensor("traincarry/stoch").flatten(-2)
    )
    follows = torch.tensor([int(c) > 0 for c in continued.ljust(2, "0")])
    start = State(extras["deter"][:, 0], extras["stoch"][:, 0])
    batch = split_context(raw, networks.model, start, carried=carried, follows=follows)
    prefix = f"ctx_consec{continued}/"
    assert_close(batch.start.deter, golden[f"{prefix}carry_deter"], "start deter")
    assert_close(
        batch.start.stoch.reshape(golden[f"{prefix}carry_stoch"].shape),
        golden[f"{prefix}carry_stoch"],
        "start stoch",
    )
    assert_close(
        batch.action, golden.encode_action(golden[f"{prefix}prevact"]).numpy(), "previous action"
    )
    assert_close(batch.reward, golden[f"{prefix}reward"], "reward")
    np.testing.assert_array_equal(batch.is_first, golden[f"{prefix}is_first"])


@torch.no_grad()
def test_every_layer_agrees_at_the_first_step(variant: str) -> None:
    golden, networks, _, _ = case(variant)
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _m, inputs, output, name=name: seen.update(
                {name: output, f"{name} input": inputs[0]}
            )
        )
        for name, module in networks.named_modules()
        if not isinstance(module, Dense)
    ]
    deter = run_first_step(golden, networks)
    for hook in hooks:
        hook.remove()
    checked = compare_layers(golden, networks, seen, deter)
    assert checked == set(golden.layers)


def run_first_step(golden: Golden, networks: Networks) -> Tensor:
    """Every network once, on the first trained step; the recurrent core is compared in its own
    function.
    """
    model = networks.model
    batch = golden.batch
    token = model.enc({k: v[:, 0] for k, v in batch.obs.items()})
    keep = 1.0 - batch.is_first[:, 0].float().unsqueeze(-1)
    draws = golden.draws.posterior[:, 0]
    state, _, _ = model.dyn.observe_step(
        model.weights(), batch.start, batch.action[:, 0], token, keep, draws
    )
    model.dyn.prior_logits(state.deter)
    model.dec.raw(state.deter, state.stoch)
    feature = torch.cat(state, -1)
    for head in (model.rew, model.con, networks.actor, networks.critic, networks.slow_critic):
        head(feature)
    return state.deter


def compare_layers(
    golden: Golden, networks: Networks, seen: dict[str, Tensor], deter: Tensor
) -> set[str]:
    """Compare each recorded layer; norms are applied to the recorded output of the layer in front
    of them.
    """
    checked: set[str] = set()
    seen |= core_layers(golden, networks)
    for official, expected in golden.layers.items():
        got = layer_output(golden, networks, seen, official)
        got = got[: len(expected)]
        assert_close(got.reshape(expected.shape), expected, official)
        checked.add(official)
    return checked


def layer_output(
    golden: Golden, networks: Networks, seen: dict[str, Tensor], official: str
) -> Tensor:
    """Output of one official layer from what our modules put out."""
    is_norm = "norm" in official.rpartition("/")[2]
    name = golden.our_name(official + ("/scale" if is_norm else "/bias")).rpartition(".")[0]
    if official.startswith("enc/cnn") and not is_norm:
        conv = networks.get_submodule(name)
        return conv.convolve(seen[f"{name} input"]).permute(0, 2, 3, 1)
    if not is_norm:
        got = seen[name]
        if got.ndim == 6:
            return got.transpose(2, 3).reshape(len(got), 2 * got.shape[1], 2 * got.shape[2], -1)
        return got
    norm = networks.get_submodule(name)
    before = norm_input(name, networks, seen)
    return norm(before)


def norm_input(name: str, networks: Networks, seen: dict[str, Tensor]) -> Tensor:
    """What stands before a norm: a linear layer, a pooled convolution, an upsampled convolution, or
    the decoder's sum.
    """
    if name.endswith(".norm"):
        return seen[name.removesuffix("norm") + "linear"]
    if name.startswith("model.enc.cnn"):
        return seen[name.replace("norms", "convs")].permute(0, 2, 3, 1)
    if name.startswith("model.dec.image.norms"):
        cells = seen[name.replace("norms", "convs")]
        return cells.transpose(2, 3).reshape(len(cells), 2 * cells.shape[1], 2 * cells.shape[2], -1)
    if name == "model.dec.image.space_norm":
        image = networks.model.dec.image
        (rows, cols), blocks = image.base, seen["model.dec.image.space_deter"]
        grid = blocks.reshape(len(blocks), image.groups, rows, cols, -1).permute(0, 2, 3, 1, 4)
        return grid.reshape(len(blocks), rows, cols, -1) + seen[
            "model.dec.image.space_stoch"
        ].reshape(len(blocks), rows, cols, -1)
    return seen[name.removesuffix("_norm")]


def core_layers(golden: Golden, networks: Networks) -> dict[str, Tensor]:
    """The recurrent core computes its layers in fused form; here they are again, one by one, from
    the same parameters.
    """
    dyn = networks.model.dyn
    batch = golden.batch
    keep = 1.0 - batch.is_first[:, 0].float().unsqueeze(-1)
    deter = batch.start.deter * keep
    stoch = batch.start.stoch * keep
    action = batch.action[:, 0] * keep
    action = action / action.abs().clamp(min=1)
    inputs = [dyn.in_deter, dyn.in_stoch, dyn.in_action]
    pre = [layer.linear(x) for layer, x in zip(inputs, (deter, stoch, action), strict=True)]
    x = torch.cat(
        [torch.nn.functional.silu(layer.norm(p)) for layer, p in zip(inputs, pre, strict=True)], -1
    )
    blocks = dyn.hid.blocks
    per_block = torch.cat(
        [deter.view(len(deter), blocks, -1), x[:, None].expand(-1, blocks, -1)], -1
    )
    hid = dyn.hid(per_block.flatten(1))
    gru = dyn.gru(torch.nn.functional.silu(dyn.hid_norm(hid)))
    names = ("in_deter.linear", "in_stoch.linear", "in_action.linear", "hid", "gru")
    return {f"model.dyn.{name}": value for name, value in zip(names, (*pre, hid, gru), strict=True)}
