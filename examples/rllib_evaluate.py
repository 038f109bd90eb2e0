"""RLlib's evaluation plays with an agent that worldloom trained.

python examples/rllib_evaluate.py runs/quick-0001 --env Pendulum-v1 --episodes 5
"""

import argparse

from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from worldloom_dist.runtime.rllib_module import TrainedModule


def play(path: str, env: str, episodes: int, envs: int) -> list[float]:
    """Returns of whole episodes, as RLlib counts them."""
    config = (
        BCConfig()
        .environment(env, normalize_actions=False, clip_actions=False)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=envs)
        .rl_module(
            rl_module_spec=RLModuleSpec(module_class=TrainedModule, model_config={"path": path})
        )
        .debugging(seed=1)
    )
    runner = SingleAgentEnvRunner(config=config)
    try:
        found = runner.sample(num_episodes=episodes, explore=False)
        return [float(episode.get_return()) for episode in found]
    finally:
        runner.stop()


def main() -> None:
    """Play, and print the mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a run folder, a checkpoint, or what Agent.save wrote")
    parser.add_argument("--env", default="Pendulum-v1", help="id of a Gymnasium env")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--envs", type=int, default=1, help="that are played at once")
    options = parser.parse_args()
    returns = play(options.run, options.env, options.episodes, options.envs)
    mean = sum(returns) / len(returns)
    print(f"return {mean:.1f} over {len(returns)} episodes")


if __name__ == "__main__":
    main()
