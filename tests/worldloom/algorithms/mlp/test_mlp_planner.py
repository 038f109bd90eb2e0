"""Searching sequences in a known world, and trees against ones worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worldloom.algorithms.mlp.tiny import make_env, tiny_config
from worldloom.algorithms.mlp.mcts import TreeSearch, puct_scores
from worldloom.algorithms.mlp.model import Networks, disagreement
from worldloom.algorithms.mlp.planner import SequenceSearch, make_search, sequence_values


class Line:
    """A known world with two members: a latent moves by the action (or by the class minus 1), the
    reward is minus the distance to 2, the second member adds ``apart`` to every step, and the
    critic says ``value``. With ``by_action`` the second member adds that times the distance moved
    instead, so that disagreement depends on the action.
    """

    def __init__(
        self,
        env: Any,
        *,
        apart: float = 0.0,
        by_action: float = 0.0,
        done_at: float = math.inf,
    ) -> None:
        config = tiny_config(latent_dim=1, ensemble_size=2)
        self.actor = Networks(config, env).actor
        self.actions = self.actor.layout
        self.is_discrete = bool(self.actions.keys[0].classes)
        self.apart = torch.tensor([0.0, apart]).view(2, 1, 1)
        self.by_action = torch.tensor([0.0, by_action]).view(2, 1, 1)
        self.done_at = done_at
        self.end_value = 0.0
        self.model = SimpleNamespace(
            next=self.next, arrival=self.arrival, dynamics=SimpleNamespace(members=2)
        )

    def next(self, latent: Tensor, action: Tensor) -> Tensor:
        if self.is_discrete:
            action = (action * torch.arange(-1.0, 2.0)).sum(-1, keepdim=True)
        else:
            action = action[..., :1]
        moved: Tensor = latent + action + self.apart + self.by_action * action.abs()
        return moved

    def arrival(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        place = latent[..., 0]
        return -(place - 2).abs(), torch.where(place >= self.done_at, 50.0, -50.0)

    def value(self, latent: Tensor) -> Tensor:
        return torch.full(latent.shape[:-1], self.end_value)


@torch.no_grad()
def decide(
    search: Any, world: Line, latent: Tensor, seed: int = 0, explore: bool = False
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = len(latent)
    uniform = torch.rand(rows, search.num_uniform, generator=generator)
    normal = torch.randn(rows, search.num_normal, generator=generator)
    found: Tensor = search(world, latent, uniform, normal, explore=explore)
    return found


def sequence_search(world: Line, iterations: int, **changes: Any) -> SequenceSearch:
    sizes = {"num_samples": 64, "num_elites": 8, "plan_horizon": 3, "discount": 0.9}
    config = tiny_config(**(sizes | changes))
    return SequenceSearch(config, world.actions, world.actor, iterations=iterations)


@pytest.mark.parametrize(("iterations", "most"), [(1, 0.4), (5, 0.1)])
def test_the_best_action_of_a_known_world_is_found(iterations: int, most: float) -> None:
    world = Line(make_env())
    latent = torch.tensor([[0.0], [5.0], [1.5]])
    action = decide(sequence_search(world, iterations), world, latent)[:, 0]
    assert (action - torch.tensor([1.0, -1.0, 0.5])).abs().max() < most


def test_more_iterations_plan_closer_than_random_shooting() -> None:
    world = Line(make_env())
    latent = torch.full((20, 1), 1.5)
    errors = [
        float((decide(sequence_search(world, n), world, latent)[:, 0] - 0.5).abs().mean())
        for n in (1, 5)
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("explore", [False, True])
def test_classes_are_planned_as_codes(explore: bool) -> None:
    world = Line(make_env(discrete=3))
    latent = torch.tensor([[0.0], [5.0]])
    action = decide(sequence_search(world, 3), world, latent, explore=explore)
    assert action.tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]


def test_exploring_draws_among_the_elites() -> None:
    world = Line(make_env())
    latent = torch.full((50, 1), 1.5)
    search = sequence_search(world, 2)
    best, drawn = (decide(search, world, latent, explore=e)[:, 0] for e in (False, True))
    same = (best == drawn).float().mean()
    assert 0 < same < 0.5
    assert (drawn - 0.5).abs().mean() < 0.5


def test_the_value_of_a_sequence_is_that_of_a_loop_with_the_critic_at_its_end() -> None:
    world = Line(make_env(), apart=0.5, done_at=4.0)
    world.end_value = 7.0
    rng = np.random.default_rng(0)
    latent = torch.tensor([[0.0], [3.2]])
    sequences = torch.from_numpy(rng.uniform(-1, 1, (2, 4, 3, 2)).astype(np.float32))
    found = sequence_values(world, latent, sequences, discount=0.9, bonus=2.0)  # type: ignore[arg-type]
    doubt = 0.25  # the deviation of 0 and 0.5, about where a step leads from one place
    for n in range(2):
        for s in range(4):
            total = 0.0
            for member in range(2):
                states = [latent[n, 0].item()] * 2
                alive = 1.0
                for t in range(3):
                    states = [
                        x + sequences[n, s, t, 0].item() + 0.5 * k for k, x in enumerate(states)
                    ]
                    place = states[member]
                    total += alive * (-abs(place - 2) + 2.0 * doubt)
                    alive *= 0.9 * (place < 4)
                total += alive * 7.0
            assert found[n, s].item() == pytest.approx(total / 2, abs=1e-4)


@pytest.mark.parametrize(("by_action", "gains"), [(0.0, [0.0, 0.0]), (1.0, [0.3, 1.2])])
def test_the_bonus_is_the_disagreement_about_each_sequence_s_own_action(
    by_action: float, gains: list[float]
) -> None:
    world = Line(make_env(), by_action=by_action)
    sequences = torch.tensor([[[[0.2, 0.0]], [[-0.8, 0.0]]]])
    plain, curious = (
        sequence_values(world, torch.zeros(1, 1), sequences, discount=0.9, bonus=b)  # type: ignore[arg-type]
        for b in (0.0, 3.0)
    )
    torch.testing.assert_close(curious - plain, torch.tensor([gains]), atol=1e-4, rtol=0)


def test_members_that_went_apart_do_not_disagree_about_a_step_on_which_they_agree() -> None:
    world = Line(make_env(), by_action=1.0)
    still = torch.tensor([[[[0.8, 0.0], [0.0, 0.0], [0.0, 0.0]]]])
    plain, curious = (
        sequence_values(world, torch.zeros(1, 1), still, discount=1.0, bonus=b)  # type: ignore[arg-type]
        for b in (0.0, 3.0)
    )
    assert float(curious - plain) == pytest.approx(1.2, abs=1e-4), "for the first step alone"


@pytest.mark.parametrize("acting", ["random-shooting", "cem", "mcts"])
def test_curiosity_counts_while_exploring_alone_and_a_penalty_always(acting: str) -> None:
    """In place 2 staying is rewarded; moving is what members disagree about."""
    world = Line(make_env(discrete=3), by_action=0.5)
    latent = torch.full((20, 1), 2.0)
    found = {}
    for bonus in (50.0, -50.0):
        sizes = {"num_samples": 64, "num_elites": 4, "plan_horizon": 1, "simulations": 48}
        config = tiny_config(acting=acting, uncertainty_bonus=bonus, discount=0.9, **sizes)
        search = make_search(config, world, torch.device("cpu"))  # type: ignore[arg-type]
        for explore in (True, False):
            chosen = decide(search, world, latent, explore=explore).argmax(-1)
            found[bonus, explore] = float((chosen == 1).float().mean())
    assert found[50.0, True] < 0.3
    assert found[50.0, False] == 1
    assert found[-50.0, False] == 1
    assert found[-50.0, True] > 0.7


def test_disagreement_is_the_root_of_the_mean_variance() -> None:
    latent = torch.tensor([[[0.0, 1.0]], [[2.0, 1.0]]])
    assert disagreement(latent).tolist() == pytest.approx([math.sqrt(0.5)])


# -- trees --------------------------------------------------------------------------------


def test_puct_scores_are_those_worked_out_by_hand() -> None:
    prior = torch.tensor([[0.5, 0.3, 0.2]])
    visits = torch.tensor([[3.0, 1.0, 0.0]])
    value = torch.tensor([[4.0, 10.0, 0.0]])
    found = puct_scores(prior, visits, value, torch.tensor([[2.0]]), torch.tensor([[10.0]]))
    rate = 1.25 + math.log((4 + 19652 + 1) / 19652)
    want = [
        (4 - 2) / 8 + 0.5 * 2 / 4 * rate,
        1.0 + 0.3 * 2 / 2 * rate,
        0.2 * 2 / 1 * rate,
    ]
    assert found[0].tolist() == pytest.approx(want, rel=1e-5)


def naive_tree(
    world: Line, root: float, prior: list[float], sims: int, depth: int, discount: float
):  # type: ignore[no-untyped-def]
    """The same search with objects, one env at a time."""

    class Node:
        def __init__(self, place: float) -> None:
            self.place = place
            self.edges: dict[int, list[Any]] = {
                a: [0, 0.0, None] for a in range(3)
            }  # visits, total, child

    top = Node(root)
    nodes = [top]
    for size in range(1, sims + 1):
        means = [e[1] / e[0] for node in nodes for e in node.edges.values() if e[0]]
        low, high = (min(means), max(means)) if means else (0.0, 0.0)
        node, path = top, []
        for _ in range(min(size, depth)):
            total = sum(e[0] for e in node.edges.values())
            rate = 1.25 + math.log((total + 19652 + 1) / 19652)
            scores = []
            for a, (n, w, _) in node.edges.items():
                q = 0.0 if not n else ((w / n - low) / (high - low) if high > low else w / n)
                scores.append(q + prior[a] * math.sqrt(max(total, 1)) / (1 + n) * rate)
            action = int(np.argmax(scores))
            path.append((node, action))
            child = node.edges[action][2]
            if child is None:
                break
            node = child
        parent, action = path[-1]
        new = Node(parent.place + action - 1)
        if parent.edges[action][2] is None:
            parent.edges[action][2] = new
            nodes.append(new)
        value = world.end_value
        for parent, action in reversed(path):
            value = -abs(parent.place + action - 1 - 2) + discount * value
            parent.edges[action][0] += 1
            parent.edges[action][1] += value
    return [top.edges[a][0] for a in range(3)], [top.edges[a][1] for a in range(3)]


def test_a_tree_has_the_visits_of_a_naive_one() -> None:
    world = Line(make_env(discrete=3))
    world.end_value = -0.5
    torch.nn.init.normal_(
        world.actor.head.out[0].bias, std=1.0
    )  # a prior that does not depend on place
    torch.nn.init.zeros_(world.actor.head.out[0].weight)
    latent = torch.tensor([[0.0], [2.0], [2.7]])
    config = tiny_config(simulations=20, plan_horizon=3, discount=0.9)
    tree = TreeSearch(config, world.actions).grow(world, latent, None)  # type: ignore[arg-type]
    prior = world.actor(latent[:1])["action/logits"].softmax(-1)[0].tolist()
    for n in range(3):
        visits, totals = naive_tree(world, latent[n, 0].item(), prior, 20, 3, 0.9)
        assert tree.visits[n, 0].tolist() == visits
        assert tree.total[n, 0].tolist() == pytest.approx(totals, abs=1e-4)


def test_a_tree_finds_the_best_action_and_explores_by_its_visits() -> None:
    world = Line(make_env(discrete=3))
    search = TreeSearch(tiny_config(simulations=24, discount=0.9), world.actions)
    latent = torch.tensor([[0.0], [5.0], [2.0]])
    action = decide(search, world, latent).argmax(-1)
    assert action.tolist() == [2, 0, 1]
    many = decide(search, world, latent[:1].expand(200, 1), explore=True).argmax(-1)
    shares = torch.bincount(many, minlength=3) / 200
    assert shares[2] == shares.max()
    assert (shares > 0).sum() >= 2


def test_an_imagined_end_keeps_what_lies_behind_it_from_the_tree() -> None:
    world = Line(make_env(discrete=3), done_at=1.0)
    world.end_value = -10.0
    tree = TreeSearch(tiny_config(simulations=12, discount=0.9), world.actions).grow(
        world,  # type: ignore[arg-type]
        torch.zeros(1, 1),
        None,
    )
    mean = (tree.total[0, 0] / tree.visits[0, 0])[2]
    assert mean.item() == pytest.approx(-1.0, abs=1e-3), "the reward of arriving at 1, and no more"


def test_what_acts_is_chosen_by_name() -> None:
    world: Any = Line(make_env(discrete=3))
    place = torch.device("cpu")
    kinds = {
        name: type(make_search(tiny_config(acting=name), world, place)).__name__
        for name in ("actor-critic", "cem", "random-shooting", "mcts")
    }
    assert kinds == {
        "actor-critic": "ActorOnly",
        "cem": "SequenceSearch",
        "random-shooting": "SequenceSearch",
        "mcts": "TreeSearch",
    }
