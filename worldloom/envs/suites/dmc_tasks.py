"""Tasks in the domains of the DeepMind Control Suite that the suite itself lacks: the eleven which
TD-MPC2's authors (arXiv:2310.16828v2) added to it for their set of 30, by their definitions.

Models, observations and first states are the suite's own; a reward is new, of the reacher the arm,
and of the ball in a cup where it begins. Heights are in metres, speeds in metres per second (of the
pendulum: radians). Importing this imports dm_control.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from xml.etree import ElementTree

import numpy as np
from dm_control.rl import control
from dm_control.suite import ball_in_cup, base, cheetah, hopper, pendulum, reacher, walker
from dm_control.utils.rewards import tolerance

__all__ = ["TASKS"]

JUMP_HEIGHT = 1.2
"""Of the cheetah's torso and feet."""
BACKWARDS_SHARE, ONE_FOOT_SHARE = 0.8, 0.6
"""Of the cheetah's running speed, backwards and on one foot."""
JUMP_SPEED = 0.5
"""The cheetah's, above which a jump is a run."""
HOP_BACK_SPEED = 1.0
"""Half of the hopper's speed forwards."""
FAR_FROM_CUP = 0.5
FAST_BALL = 6.0
FREE_START_CHANCE = 0.1
"""That an episode of the ball in a cup does not begin in the cup."""
FAST_POLE = 9.0
LINKS = (("arm0", "shoulder0", 0.09), ("arm1", "shoulder1", 0.09), ("hand", "wrist", 0.1))
"""Name, joint and length of each link of the reacher with three, from the root."""
LINK_SPACING = 0.09
LINK_RANGE = "-80 80"
"""Degrees that a joint turns; the first one turns freely."""


def _beyond(value: float, bound: float, *, at_margin: float, margin: float) -> float:
    """1 where a value is at least the bound, and falling in a line below it."""
    found: float = tolerance(
        value,
        bounds=(bound, math.inf),
        margin=margin,
        value_at_margin=at_margin,
        sigmoid="linear",
    )
    return found


def _above(height: float, bound: float) -> float:
    """1 where a height is at least the bound, and falling like a bell below it."""
    found: float = tolerance(height, bounds=(bound, math.inf), margin=bound / 2)
    return found


class WalkerBackwards(walker.PlanarWalker):  # type: ignore[misc]
    """Stands, and moves backwards at least this fast."""

    def __init__(self, speed: float, random: Any) -> None:
        super().__init__(move_speed=0, random=random)
        self._backwards = speed

    def get_reward(self, physics: Any) -> float:
        """The suite's reward for standing, times up to 1 for the speed."""
        stands: float = super().get_reward(physics)
        speed = -physics.horizontal_velocity()
        moves = _beyond(speed, self._backwards, margin=self._backwards / 2, at_margin=0.5)
        return stands * (5 * moves + 1) / 6


class CheetahBackwards(cheetah.Cheetah):  # type: ignore[misc]
    """Runs backwards."""

    def get_reward(self, physics: Any) -> float:
        """Grows with the speed backwards."""
        bound = BACKWARDS_SHARE * cheetah._RUN_SPEED
        return _beyond(-physics.speed(), bound, margin=bound, at_margin=0.0)


class CheetahOnOneFoot(cheetah.Cheetah):  # type: ignore[misc]
    """Runs with a foot in the air."""

    def __init__(self, foot: str, random: Any) -> None:
        super().__init__(random=random)
        self._foot = foot

    def get_reward(self, physics: Any) -> float:
        """Heights of foot and torso, times up to 1 for the speed."""
        height = physics.named.data.xpos
        foot = _above(height[self._foot, "z"], JUMP_HEIGHT)
        torso = _above(height["torso", "z"], JUMP_HEIGHT)
        bound = ONE_FOOT_SHARE * cheetah._RUN_SPEED
        runs = _beyond(physics.speed(), bound, margin=bound, at_margin=0.0)
        return (3 * foot + 2 * torso) / 5 * (5 * runs + 1) / 6


class CheetahJump(cheetah.Cheetah):  # type: ignore[misc]
    """Has torso and both feet in the air, and stays where it is."""

    def get_reward(self, physics: Any) -> float:
        """The height between torso and foot, the mean over both feet; a little for no speed."""
        height = physics.named.data.xpos
        torso = height["torso", "z"]
        up = [_above((torso + height[f, "z"]) / 2, JUMP_HEIGHT) for f in ("bfoot", "ffoot")]
        stays: float = tolerance(
            physics.speed(),
            bounds=(-JUMP_SPEED, JUMP_SPEED),
            margin=JUMP_SPEED,
            value_at_margin=0,
            sigmoid="linear",
        )
        return (5 * sum(up) / 2 + stays) / 6


class HopperBackwards(hopper.Hopper):  # type: ignore[misc]
    """Stands, and hops backwards."""

    def __init__(self, random: Any) -> None:
        super().__init__(hopping=True, random=random)

    def get_reward(self, physics: Any) -> float:
        """1 or 0 for standing, times up to 1 for the speed."""
        stands: float = tolerance(physics.height(), (hopper._STAND_HEIGHT, 2))
        margin = HOP_BACK_SPEED / 2
        return stands * _beyond(-physics.speed(), HOP_BACK_SPEED, margin=margin, at_margin=0.5)


class CupSpin(ball_in_cup.BallInCup):  # type: ignore[misc]
    """Swings the ball around the cup."""

    def initialize_episode(self, physics: Any) -> None:
        """Put the ball where it touches nothing: into the cup, or now and then anywhere."""
        is_free = self.random.uniform() < FREE_START_CHANCE
        is_found = False
        while not is_found:
            physics.named.data.qpos["ball_x"] = self.random.uniform(-0.2, 0.2)
            physics.named.data.qpos["ball_z"] = self.random.uniform(0.2, 0.5)
            physics.after_reset()
            touches = physics.data.ncon > 0
            is_found = not touches and (is_free or bool(physics.in_target()))
        base.Task.initialize_episode(self, physics)  # not the suite's, which draws another place

    def get_reward(self, physics: Any) -> float:
        """Distance and, twice, speed of the ball; nothing in the cup."""
        if physics.in_target():
            return 0.0
        distance = float(np.linalg.norm(physics.ball_to_target()))
        velocity = [physics.named.data.qvel[joint].item() for joint in ("ball_x", "ball_z")]
        far = _beyond(distance, FAR_FROM_CUP, margin=FAR_FROM_CUP / 2, at_margin=0.5)
        fast = _beyond(math.hypot(*velocity), FAST_BALL, margin=FAST_BALL / 2, at_margin=0.5)
        return (far + 2 * fast) / 3


class PendulumSpin(pendulum.SwingUp):  # type: ignore[misc]
    """Turns the pole fast, either way."""

    def get_reward(self, physics: Any) -> float:
        """Grows with the speed of the pole."""
        speed = abs(float(physics.angular_velocity().item()))
        return _beyond(speed, FAST_POLE, margin=FAST_POLE / 2, at_margin=0.5)


def three_links() -> tuple[str, Mapping[str, bytes]]:
    """Model and assets of a reacher whose arm has three links."""
    text, assets = reacher.get_model_and_assets()
    root = ElementTree.fromstring(text)
    world = root.find("worldbody")
    motors = root.find("actuator")
    assert world is not None
    assert motors is not None
    arm = next(body for body in world if body.get("name") == "arm")
    finger = next(body for body in arm.iter("body") if body.get("name") == "finger")
    height = arm.get("pos", "").split()[-1]
    place = list(world).index(arm)
    world.remove(arm)
    outer = world
    for number, (name, joint, length) in enumerate(LINKS):
        pos = f"{LINK_SPACING} 0 0" if number else f"0 0 {height}"
        link = ElementTree.Element("body", name=name, pos=pos)
        capsule = {"name": name, "type": "capsule", "size": ".01", "material": "self"}
        ElementTree.SubElement(link, "geom", capsule | {"fromto": f"0 0 0 {length} 0 0"})
        limits = {"limited": "true", "range": LINK_RANGE} if number else {}
        ElementTree.SubElement(link, "joint", {"name": joint} | limits)
        outer.insert(len(outer) if number else place, link)
        outer = link
    finger.set("pos", f"{LINK_SPACING} 0 0")
    outer.append(finger)
    motors.clear()
    for _, joint, _ in LINKS:
        ElementTree.SubElement(motors, "motor", name=joint, joint=joint)
    return ElementTree.tostring(root, encoding="unicode"), assets


def _load(domain: Any, make_task: Callable[..., Any], random: Any, model: Any = None) -> Any:
    """The env of a task in a domain of the suite, with the domain's time limit and time step."""
    physics = domain.Physics.from_xml_string(*(model or domain.get_model_and_assets)())
    return control.Environment(
        physics,
        make_task(random=random),
        time_limit=domain._DEFAULT_TIME_LIMIT,
        control_timestep=getattr(domain, "_CONTROL_TIMESTEP", None),
    )


TASKS: Mapping[tuple[str, str], Callable[[Any], Any]] = {
    (domain.__name__.rpartition(".")[2], name): partial(_load, domain, task, **model)
    for domain, name, task, model in (
        (walker, "walk_backwards", partial(WalkerBackwards, walker._WALK_SPEED), {}),
        (walker, "run_backwards", partial(WalkerBackwards, walker._RUN_SPEED), {}),
        (cheetah, "run_backwards", CheetahBackwards, {}),
        (cheetah, "run_front", partial(CheetahOnOneFoot, "bfoot"), {}),
        (cheetah, "run_back", partial(CheetahOnOneFoot, "ffoot"), {}),
        (cheetah, "jump", CheetahJump, {}),
        (hopper, "hop_backwards", HopperBackwards, {}),
        (
            reacher,
            "three_easy",
            partial(reacher.Reacher, reacher._BIG_TARGET),
            {"model": three_links},
        ),
        (
            reacher,
            "three_hard",
            partial(reacher.Reacher, reacher._SMALL_TARGET),
            {"model": three_links},
        ),
        (ball_in_cup, "spin", CupSpin, {}),
        (pendulum, "spin", PendulumSpin, {}),
    )
}
"""Domain and name of a task, as the suite writes them -> its env, from the seed of its draws."""
