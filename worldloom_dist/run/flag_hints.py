"""What a flag that does not exist may have meant: by meaning first (``--lr``, ``--gamma``,
``--total-timesteps``), then by spelling.
"""

from __future__ import annotations

from collections.abc import Iterable

from worldloom.core.exceptions import nearest

__all__ = ["hint"]

MEANINGS: tuple[frozenset[str], ...] = tuple(
    frozenset(words.split())
    for words in (
        "lr learning_rate step_size alpha",
        "gamma discount horizon",
        "batch batch_size minibatch_size",
        "seq_len sequence_length batch_length window",
        "lam lambda gae_lambda",
        "tau slow_rate polyak ema target_rate",
        "entropy entropy_scale entropy_coef ent_coef actent",
        "free_bits free_nats",
        "grad_clip grad_clip_norm max_grad_norm clip agc",
        "hidden_size hidden_dim units mlp_dim",
        "num_layers layers actor_layers",
        "warmup warmup_steps",
        "learning_starts prefill seed_steps warmup_rows prefill_agent_steps start_steps",
        "utd replay_ratio updates_per_step train_ratio",
        "num_workers n_workers num_actors actors workers",
        "n_envs num_envs envs envs_per_worker",
        "total_timesteps timesteps steps total_steps num_steps max_steps env_steps",
        "updates num_updates gradient_steps train_steps",
        "buffer_size replay_size buffer replay_capacity capacity capacity_steps",
        "device gpu cuda",
        "log_dir logdir output_dir out dir run_dir save_dir",
        "eval_freq eval_interval eval_frequency eval_every",
        "n_eval_episodes num_eval_episodes eval_episodes",
        "save_every save_freq checkpoint_freq checkpoint_every checkpoint_every_s",
        "task env_id env_name game env",
        "algo algorithm model agent",
        "video record_video videos capture_video eval_videos",
        "frame_skip frameskip action_repeat",
        "max_episode_steps time_limit episode_length",
        "random_seed seed",
    )
)
"""Names of one setting; a flag is meant by its last part."""


def hint(flag: str, known: Iterable[str]) -> str:
    """``; did you mean --agent.lr?``, or an empty text.

    Args:
        flag: What was typed, normalised to dashes.
        known: Flags that exist.
    """
    known = list(known)
    meant = [name for name in known if name != flag and _mean_the_same(flag, name)]
    if meant:
        in_section = [name for name in meant if _section(name) == _section(flag)]
        return f"; did you mean {' or '.join((in_section or meant)[:3])}?"
    return nearest(flag, known)


def _mean_the_same(flag: str, other: str) -> bool:
    one, two = _name(flag), _name(other)
    return one == two or any(one in group and two in group for group in MEANINGS)


def _name(flag: str) -> str:
    return flag.removeprefix("--").rpartition(".")[2].replace("-", "_")


def _section(flag: str) -> str:
    return flag.removeprefix("--").rpartition(".")[0]
