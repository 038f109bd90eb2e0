"""Act with the policy in this folder: ``python run_policy.py [EPISODES]``.

Needs numpy and onnxruntime, and gymnasium to play. In a program of yours:

    from run_policy import Policy
    policy = Policy()
    obs, info = env.reset()
    policy.reset()
    obs, *_ = env.step(policy.act(obs))
"""

import functools
import json
import operator
import pathlib
import sys
from typing import Any

import numpy as np
import onnxruntime

__all__ = ["Policy"]


class Policy:
    """Observations as the env gives them in, actions as the env takes them out."""

    def __init__(self, folder: Any = pathlib.Path(__file__).parent, seed: int = 0) -> None:
        self.contract = json.loads((pathlib.Path(folder) / "policy.json").read_text())
        self.inputs, self.outputs = self.contract["inputs"], self.contract["outputs"]
        self.session = onnxruntime.InferenceSession(pathlib.Path(folder) / self.contract["file"])
        self.draws = np.random.default_rng(seed)
        self.reset()

    def reset(self) -> None:
        """The next observation is the first one of an episode."""
        self.carry = {i["name"]: self._zeros(i) for i in self.inputs if i["role"] == "carry"}
        self.is_first = True

    def act(self, obs: Any) -> Any:
        """What the env's step takes."""
        feed = {i["name"]: self._value(i, obs) for i in self.inputs}
        names = [o["name"] for o in self.outputs]
        found = dict(zip(names, self.session.run(names, feed), strict=True))
        self.carry = {i["name"]: found[i["next"]] for i in self.inputs if i["role"] == "carry"}
        self.is_first = False
        actions = {tuple(o["path"]): (found[o["name"]][0], o) for o in self.outputs if "path" in o}
        return self._built(self.contract["spaces"]["action"], (), actions)

    def _value(self, port: dict[str, Any], obs: Any) -> np.ndarray:
        shape = [1, *port["shape"]]
        if port["role"] == "observation":
            value = functools.reduce(operator.getitem, port["path"], obs)
            return np.asarray(value).astype(port["dtype"]).reshape(shape)
        if port["role"] == "carry":
            return self.carry[port["name"]]
        if port["role"] == "is_first":
            return np.array([self.is_first])
        draw = self.draws.random if port["draws"] == "uniform" else self.draws.standard_normal
        return draw(shape, np.float32)

    def _built(self, space: Any, path: tuple[Any, ...], actions: Any) -> Any:
        if space["kind"] == "Dict":
            return {k: self._built(s, (*path, k), actions) for k, s in space["parts"]}
        if space["kind"] == "Tuple":
            return tuple(self._built(s, (*path, i), actions) for i, s in enumerate(space["parts"]))
        if path not in actions:  # an array without elements
            return np.zeros(space["shape"], space["dtype"])
        value, port = actions[path]
        return value.astype(port["env_dtype"])

    @staticmethod
    def _zeros(port: dict[str, Any]) -> np.ndarray:
        return np.zeros([1, *port["shape"]], port["dtype"])


def main(episodes: int) -> None:
    """Play, and say the return of every episode."""
    import gymnasium

    policy = Policy()
    made = policy.contract["env"]["gymnasium"]
    if made is None:
        sys.exit(f"gymnasium does not make {policy.contract['env']['name']}; act with Policy")
    env: Any = gymnasium.make(made["id"], **made["kwargs"])
    for episode in range(episodes):
        obs, _ = env.reset(seed=episode)
        policy.reset()
        total, is_over = 0.0, False
        while not is_over:
            action = policy.act(obs)
            for _ in range(policy.contract["control"]["action_repeat"]):
                obs, reward, terminated, truncated, _ = env.step(action)
                total += float(reward)
                is_over = terminated or truncated
                if is_over:
                    break
        sys.stdout.write(f"episode {episode}: return {total:g}\n")
    env.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
