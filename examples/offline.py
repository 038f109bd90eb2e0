"""What the training examples share: flags, data, and the run itself."""

import argparse
from pathlib import Path

from worldloom import create_world_model
from worldloom.core.exceptions import WorldLoomError
from worldloom.training import LoggingCallback, ReplayBuffer, Trainer, TrainingConfig
from worldloom.training.data import create_random_buffer


def parser(description, *, size, batch_size, seq_len, lr, output_dir, data=None):
    """Flags that every training example has, with its own defaults."""
    flags = argparse.ArgumentParser(description=description)
    flags.add_argument("--data", default=data, help="an .npz of episodes")
    flags.add_argument(
        "--test", action="store_true", help="train a tiny model on random data for a few steps"
    )
    flags.add_argument("--size", default=size, help="preset of the model; ci is the smallest")
    flags.add_argument("--steps", type=int, default=100_000)
    flags.add_argument("--batch-size", type=int, default=batch_size)
    flags.add_argument("--seq-len", type=int, default=seq_len)
    flags.add_argument("--lr", type=float, default=lr)
    flags.add_argument("--output-dir", default=output_dir)
    flags.add_argument("--resume", help="a checkpoint to go on from")
    flags.add_argument("--device", default="auto")
    flags.add_argument("--wandb", action="store_true", help="log to Weights & Biases")
    return flags


def load_data(args, obs_shape, action_dim):
    """The buffer of ``--data``, or with ``--test`` one of noise."""
    if args.test:
        args.size = "ci"
        args.steps = min(args.steps, 2)
        args.batch_size = 2
        args.seq_len = 8
        return create_random_buffer(
            200, obs_shape, action_dim, num_episodes=20, episode_length=10, seed=0
        )
    if args.data is None:
        raise SystemExit(
            "name the data with --data FILE.npz (collect_atari.py and "
            "collect_mujoco.py make one), or try --test"
        )
    return ReplayBuffer.load(args.data)


def run(kind, args, obs_shape, action_dim, **fields):
    """Create, train and save a model; returns it and its data."""
    try:
        buffer = load_data(args, obs_shape, action_dim)
        model = create_world_model(
            f"{kind}:{args.size}",
            obs_shape=buffer.obs_shape,
            action_dim=buffer.action_dim,
            **fields,
        )
        print(
            f"{kind}:{args.size} with {model.num_parameters / 1e6:.1f} M parameters, "
            f"{len(buffer)} transitions"
        )
        config = TrainingConfig(
            total_steps=args.steps,
            batch_size=args.batch_size,
            sequence_length=args.seq_len,
            learning_rate=args.lr,
            output_dir=args.output_dir,
            device=args.device,
            eval_batches=1 if args.test else 4,
            log_interval=max(1, min(100, args.steps // 2)),
        )
        callbacks = [LoggingCallback(config.log_interval, use_wandb=True)] if args.wandb else []
        trainer = Trainer(model, config, callbacks)
        trainer.train(buffer, resume_from=args.resume)
    except WorldLoomError as error:
        raise SystemExit(f"error: {error}") from error
    target = Path(args.output_dir) / "model"
    model.save_pretrained(target)
    print(f"saved {target}; held-out loss {trainer.state.best_loss:.4g}")
    return model, buffer
