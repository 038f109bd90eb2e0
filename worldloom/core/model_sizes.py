"""The presets of the public world models: size -> fields of its config. No torch."""

from __future__ import annotations

from typing import Any

__all__ = ["DREAMER_SIZES", "MLP_SIZES", "TDMPC2_SIZES", "official_scales"]


def _dreamer_size(width: int) -> dict[str, Any]:
    """The official family: deter = 8 width, classes = depth = width / 16."""
    return {
        "deter_dim": 8 * width,
        "hidden_dim": width,
        "stoch_classes": width // 16,
        "cnn_depth": width // 16,
        **OFFICIAL_KL,
    }


def official_scales() -> dict[str, float]:
    """Factors of the losses that add up to the official ones."""
    return {"reconstruction": 1.0, "kl": 1.1, "reward": 1.0, "continue": 1.0}


OFFICIAL_KL: dict[str, Any] = {"kl_balance": 10 / 11, "loss_scales": official_scales()}
"""The official 1.0 on the prior's and 0.1 on the posterior's divergence, written as scale and
balance.
"""
DREAMER_SIZES: dict[str, dict[str, Any]] = {
    "ci": _dreamer_size(64)
    | {"deter_dim": 64, "hidden_dim": 32, "stoch_discrete": 4, "stoch_classes": 4, "cnn_depth": 4},
    **{
        f"size{name}m": _dreamer_size(w)
        for name, w in {1: 64, 12: 256, 25: 384, 50: 512, 100: 768, 200: 1024, 400: 1536}.items()
    },
}


TDMPC2_SIZES: dict[str, dict[str, Any]] = {
    "ci": {
        "latent_dim": 32,
        "hidden_dim": 32,
        "encoder_dim": 32,
        "num_q_networks": 2,
        "num_samples": 32,
        "num_elites": 8,
    },
    "1m": {
        "latent_dim": 128,
        "hidden_dim": 384,
        "encoder_dim": 256,
        "num_hidden_layers": 2,
        "num_q_networks": 2,
    },
    "5m": {"latent_dim": 512, "hidden_dim": 512, "encoder_dim": 256, "num_hidden_layers": 2},
    "19m": {"latent_dim": 768, "hidden_dim": 1024, "encoder_dim": 1024, "num_hidden_layers": 3},
    "48m": {"latent_dim": 768, "hidden_dim": 1792, "encoder_dim": 1792, "num_hidden_layers": 4},
    "317m": {
        "latent_dim": 1376,
        "hidden_dim": 4096,
        "encoder_dim": 4096,
        "num_hidden_layers": 5,
        "num_q_networks": 8,
    },
}


MLP_SIZES: dict[str, dict[str, Any]] = {
    "ci": {"latent_dim": 16, "hidden_dim": 32},
    "small": {"latent_dim": 128, "hidden_dim": 256},
    "medium": {"latent_dim": 256, "hidden_dim": 512},
    "large": {"latent_dim": 512, "hidden_dim": 1024},
}
