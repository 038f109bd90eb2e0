"""Reference arrays of DreamerV3 and the way from their names and layouts to ours. Sizes are
inferred from the arrays.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.golden_support import assert_agrees, load_golden
from worldloom.algorithms.dreamerv3.model import ModelBatch
from worldloom.algorithms.dreamerv3.networks import Draws, Networks
from worldloom.algorithms.dreamerv3.rssm import State
from worldloom.algorithms.dreamerv3.spec import DreamerV3AgentConfig
from worldloom.core.specs import ArraySpec, EnvSpec

CONSTANTS = {
    "horizon": 333,
    "lam": 0.95,
    "entropy_scale": 3e-4,
    "free_nats": 1.0,
    "unimix": 0.01,
    "lr": 1e-3,
    "warmup": 0,
}
"""What the shapes of the arrays cannot tell, as the README of the arrays states it."""

FORWARD = 1e-5
GRADIENT = 1e-3
"""Largest difference allowed, as a fraction of the reference tensor's largest magnitude."""

VARIANTS = ("vec", "img")

NAMES = [
    (r"enc/mlp(\d)/(kernel|bias)", r"model.enc.mlp.layers.\1.linear.\2"),
    (r"enc/mlp(\d)norm/scale", r"model.enc.mlp.layers.\1.norm.scale"),
    (r"enc/cnn(\d)/(kernel|bias)", r"model.enc.cnn.convs.\1.\2"),
    (r"enc/cnn(\d)norm/scale", r"model.enc.cnn.norms.\1.scale"),
    (r"dyn/dynin0/(\w+)", r"model.dyn.in_deter.linear.\1"),
    (r"dyn/dynin0norm/scale", r"model.dyn.in_deter.norm.scale"),
    (r"dyn/dynin1/(\w+)", r"model.dyn.in_stoch.linear.\1"),
    (r"dyn/dynin1norm/scale", r"model.dyn.in_stoch.norm.scale"),
    (r"dyn/dynin2/(\w+)", r"model.dyn.in_action.linear.\1"),
    (r"dyn/dynin2norm/scale", r"model.dyn.in_action.norm.scale"),
    (r"dyn/dynhid0/(\w+)", r"model.dyn.hid.block_\1"),
    (r"dyn/dynhid0norm/scale", r"model.dyn.hid_norm.scale"),
    (r"dyn/dyngru/(\w+)", r"model.dyn.gru.block_\1"),
    (r"dyn/obs0/(\w+)", r"model.dyn.obs.linear.\1"),
    (r"dyn/obs0norm/scale", r"model.dyn.obs.norm.scale"),
    (r"dyn/obslogit/(\w+)", r"model.dyn.obs_logit.\1"),
    (r"dyn/prior(\d)/(\w+)", r"model.dyn.prior.\1.linear.\2"),
    (r"dyn/prior(\d)norm/scale", r"model.dyn.prior.\1.norm.scale"),
    (r"dyn/priorlogit/(\w+)", r"model.dyn.prior_logit.\1"),
    (r"dec/mlp/linear(\d)/(\w+)", r"model.dec.vec.mlp.layers.\1.linear.\2"),
    (r"dec/mlp/norm(\d)/scale", r"model.dec.vec.mlp.layers.\1.norm.scale"),
    (r"dec/vec/(\w+)/\w+/(kernel|bias)", r"model.dec.vec.out.<\1>.\2"),
    (r"dec/sp0/(\w+)", r"model.dec.image.space_deter.block_\1"),
    (r"dec/sp1/(\w+)", r"model.dec.image.stoch_hidden.linear.\1"),
    (r"dec/sp1norm/scale", r"model.dec.image.stoch_hidden.norm.scale"),
    (r"dec/sp2/(\w+)", r"model.dec.image.space_stoch.\1"),
    (r"dec/spnorm/scale", r"model.dec.image.space_norm.scale"),
    (r"dec/conv(\d)/(kernel|bias)", r"model.dec.image.convs.[\1].\2"),
    (r"dec/conv(\d)norm/scale", r"model.dec.image.norms.[\1].scale"),
    (r"dec/imgout/(\w+)", r"model.dec.image.out.\1"),
    (r"(rew|con)/mlp/linear(\d)/(\w+)", r"model.\1.mlp.layers.\2.linear.\3"),
    (r"(rew|con)/mlp/norm(\d)/scale", r"model.\1.mlp.layers.\2.norm.scale"),
    (r"(rew|con)/head/\w+/(\w+)", r"model.\1.out.0.\2"),
    (r"pol/mlp/linear(\d)/(\w+)", r"actor.head.mlp.layers.\1.linear.\2"),
    (r"pol/mlp/norm(\d)/scale", r"actor.head.mlp.layers.\1.norm.scale"),
    (r"pol/head/\w+/(?:logits|mean)/(\w+)", r"actor.head.out.0.\1"),
    (r"pol/head/\w+/stddev/(\w+)", r"actor.head.out.1.\1"),
    (r"val/mlp/linear(\d)/(\w+)", r"critic.mlp.layers.\1.linear.\2"),
    (r"val/mlp/norm(\d)/scale", r"critic.mlp.layers.\1.norm.scale"),
    (r"val/head/logits/(\w+)", r"critic.out.0.\1"),
]
"""Official name -> our name."""


def assert_close(got: Tensor, expected: np.ndarray, name: str, tolerance: float = FORWARD) -> None:
    """max|difference| <= tolerance * max|expected|, and equal shapes."""
    assert_agrees(
        got.detach().float(),
        np.asarray(expected, np.float32),
        tolerance=tolerance,
        name=name,
        floor=1e-17,
    )


@dataclass
class Golden:
    """One tiny model with its reference arrays."""

    arrays: dict[str, np.ndarray]
    layers: dict[str, np.ndarray]

    @classmethod
    def load(cls, variant: str) -> Golden:
        return cls(
            *(load_golden("dreamerv3", f"{kind}_{variant}.npz") for kind in ("model", "layers"))
        )

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key].copy())

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    @property
    def obs_keys(self) -> list[str]:
        used = {
            "reward",
            "is_first",
            "is_last",
            "is_terminal",
            "action",
            "consec",
            "stepid",
            "dyn/deter",
            "dyn/stoch",
        }
        return sorted(k for k in self.under("raw/") if k not in used)

    @property
    def is_discrete(self) -> bool:
        return self["raw/action"].dtype == np.int32

    @property
    def action_classes(self) -> int:
        return self["param/dyn/dynin2/kernel"].shape[0]

    @property
    def env(self) -> EnvSpec:
        obs = {
            k: ArraySpec(self[f"raw/{k}"].shape[2:], str(self[f"raw/{k}"].dtype))
            for k in self.obs_keys
        }
        if self.is_discrete:
            action = ArraySpec((), "int64", (self.action_classes,))
        else:
            action = ArraySpec(self["raw/action"].shape[2:], "float32")
        return EnvSpec(name="golden", obs=obs, action={"action": action})

    @property
    def config(self) -> DreamerV3AgentConfig:
        shape = {k: v.shape for k, v in self.under("param/").items()}
        stoch, classes = self["out/obs/stoch"].shape[2:]
        conv = shape.get("enc/cnn0/kernel")
        return DreamerV3AgentConfig(
            name="dreamerv3:golden",
            deter=shape["dyn/dynin0/kernel"][0],
            hidden=shape["dyn/dynin0/kernel"][1],
            stoch=stoch,
            classes=classes,
            units=shape["rew/mlp/linear0/kernel"][1],
            depth=conv[-1] // 2 if conv else 4,
            blocks=shape["dyn/dynhid0/kernel"][0],
            space_blocks=shape["dec/sp0/kernel"][0] if conv else 8,
            bins=shape["rew/head/logits/bias"][0],
            actor_layers=sum(k.startswith("pol/mlp/linear") for k in shape) // 2,
            critic_layers=sum(k.startswith("val/mlp/linear") for k in shape) // 2,
            batch_size=self["in/obs/reward"].shape[0],
            batch_length=self["in/obs/reward"].shape[1],
            imagine_length=self["out/img/stoch"].shape[1],
            **CONSTANTS,
        )

    def networks(self) -> Networks:
        net = Networks(self.config, self.env)
        values = {**dict(net.named_parameters())}
        for official in self.under("param/"):
            name = self.our_name(official)
            if name is None:
                continue
            with torch.no_grad():
                values.pop(name).copy_(self.to_ours(official, self[f"param/{official}"]))
        assert not values, f"parameters without reference: {sorted(values)}"
        return net

    def our_name(self, official: str) -> str | None:
        """Our parameter's name; None for state that is no parameter."""
        if official.startswith(("retnorm", "slowval_count")):
            return None
        slow = official.startswith("slowval/")
        plain = official.removeprefix("slow") if slow else official
        for pattern, target in NAMES:
            if re.fullmatch(pattern, plain):
                name = re.sub(pattern, target, plain).replace(
                    "critic", "slow_critic" if slow else "critic"
                )
                name = re.sub(r"<(\w+)>", lambda m: str(self.obs_keys.index(m[1])), name)
                name = re.sub(r"\[(\d)\]", lambda m: str(2 - int(m[1])), name)
                return (
                    name.replace("block_", "")
                    if "block_" in name
                    else name.replace(".kernel", ".weight")
                )
        raise AssertionError(f"no name for {official}")

    def to_ours(self, official: str, array: np.ndarray) -> Tensor:
        """Official layout to ours."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if not official.endswith("kernel") or re.search(r"dynhid0|dyngru|sp0", official):
            return tensor
        return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.t()

    def encode_action(self, action: np.ndarray) -> Tensor:
        """Raw actions to encoded ones, [..., A]."""
        tensor = torch.from_numpy(np.ascontiguousarray(action))
        return (
            torch.nn.functional.one_hot(tensor.long(), self.action_classes).float()
            if self.is_discrete
            else tensor
        )

    def obs(self, rows: slice | int) -> dict[str, Tensor]:
        return {
            k: torch.from_numpy(np.ascontiguousarray(self[f"raw/{k}"][:, rows]))
            for k in self.obs_keys
        }

    @property
    def batch(self) -> ModelBatch:
        return ModelBatch(
            obs=self.obs(slice(1, None)),
            action=self.encode_action(self["in/prevact/action"]),
            reward=self.tensor("in/obs/reward"),
            is_first=self.tensor("in/obs/is_first"),
            is_last=self.tensor("in/obs/is_last"),
            terminated=self.tensor("in/obs/is_terminal"),
            start=State(self.tensor("in/carry/deter"), self.tensor("in/carry/stoch").flatten(-2)),
        )

    @property
    def draws(self) -> Draws:
        """The samples that the reference drew."""
        none = torch.zeros(0)
        action = self.encode_action(self["out/img/act"]).transpose(0, 1).contiguous()
        prior = self.tensor("out/img/stoch").argmax(-1).transpose(0, 1).contiguous()
        return Draws(self.tensor("out/obs/stoch").argmax(-1), prior, none, none, action)
