"""Where roles go, and the refusal of a cluster that is too small: pure arithmetic over nodes that
are made up.
"""

from dataclasses import replace

import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.run.config import LearnerConfig, PlacementConfig, ReplayConfig, RunConfig
from worldloom_dist.runtime.placement import Node, Placement

NAMES = {
    name: f"{number:056x}"
    for number, name in enumerate(["head", "a", "b", "m1", "m2", "m3", "spot", "gpu"], start=1)
}
HEAD = Node(node_id=NAMES["head"], cpus=4, is_home=True)
JOINED = RunConfig(address="auto", workers=6, inference="central")


def place(config: RunConfig, *nodes: Node, inference: str = "central") -> Placement:
    return Placement(config, inference, lambda: nodes)


def node_of(options: dict) -> tuple[str, bool]:
    strategy = options["scheduling_strategy"]
    return next(name for name, node in NAMES.items() if node == strategy.node_id), strategy.soft


def test_a_cluster_of_our_own_is_shared_without_counting():
    place(replace(JOINED, address=None, workers=64), replace(HEAD, cpus=2))
    assert place(replace(JOINED, address=None), HEAD).options("worker", 3) == {"num_cpus": 0.001}


def test_files_stay_with_the_driver_and_workers_spread():
    placement = place(
        JOINED, HEAD, Node(node_id=NAMES["a"], cpus=4), Node(node_id=NAMES["b"], cpus=4)
    )
    assert placement.options("worker", 0) == {
        "num_cpus": 1.0,
        "num_gpus": 0.0,
        "scheduling_strategy": "SPREAD",
    }
    for kind in ("learner", "shard", "inference", "hub", "coordinator", "weights"):
        assert node_of(placement.options(kind, 0)) == ("head", False)
    assert placement.options("hub", 0)["num_cpus"] == 0
    assert placement.options("learner", 0)["num_cpus"] == 1.0
    assert placement.options("inference", 0)["num_cpus"] == 0, (
        "it comes back although workers hold every CPU"
    )


def test_a_head_without_cpus_still_takes_the_roles_that_belong_to_it():
    placement = place(JOINED, replace(HEAD, cpus=0), Node(node_id=NAMES["a"], cpus=8))
    assert (
        placement.options("learner", 0)["num_cpus"]
        == placement.options("shard", 0)["num_cpus"]
        == 0
    )


def test_nodes_that_are_marked_for_a_role_get_it():
    memory = [
        Node(node_id=NAMES[name], cpus=2, labels=frozenset({"worldloom_replay"}))
        for name in ("m1", "m2")
    ]
    spot = Node(node_id=NAMES["spot"], cpus=6, labels=frozenset({"worldloom_worker"}))
    gpu = Node(node_id=NAMES["gpu"], cpus=2, gpus=1, labels=frozenset({"worldloom_learner"}))
    config = replace(JOINED, replay=ReplayConfig(shards=4))
    placement = place(config, HEAD, *memory, spot, gpu)
    assert [node_of(placement.options("shard", index)) for index in range(4)] == [
        ("m1", True),
        ("m2", True),
    ] * 2
    assert placement.options("worker", 0)["resources"] == {"worldloom_worker": 0.001}
    learner = placement.options("learner", 0)
    assert learner["resources"] == {"worldloom_learner": 0.001}
    assert learner["num_gpus"] == 0.7, "one GPU is shared with inference server and evaluator"
    assert placement.options("inference", 0)["num_gpus"] == 0.25
    assert placement.options("evaluator", 0)["num_gpus"] == 0.05


def test_a_shard_returns_to_its_journal_while_that_node_lives():
    nodes = [
        HEAD,
        *(
            Node(node_id=NAMES[name], cpus=2, labels=frozenset({"worldloom_replay"}))
            for name in ("m1", "m2", "m3")
        ),
    ]
    placement = Placement(
        replace(JOINED, workers=2, replay=ReplayConfig(shards=2)), "central", lambda: nodes
    )
    assert [node_of(placement.options("shard", index))[0] for index in (0, 1, 0, 1)] == [
        "m1",
        "m2",
        "m1",
        "m2",
    ]
    del nodes[1]
    assert [node_of(placement.options("shard", index))[0] for index in (1, 0)] == ["m2", "m3"]


@pytest.mark.parametrize(
    ("nodes", "config", "says"),
    [
        (
            [HEAD],
            JOINED,
            [
                "1 learner x (1 CPU), 1 shard x (0.25 CPU), 1 inference x (0 CPU)",
                "6 worker x (1 CPU) = 7.25 CPUs",
                "1 nodes have 4 CPUs (4), with room for 2 of 6 worker",
                "--placement.worker-cpus",
            ],
        ),
        (
            [HEAD, Node(node_id=NAMES["a"], cpus=8)],
            replace(JOINED, learner=LearnerConfig(device="cuda")),
            ["with room for 0 of 1 learner", "--learner.device cpu"],
        ),
        (
            [HEAD, Node(node_id=NAMES["a"], cpus=64)],
            replace(JOINED, replay=ReplayConfig(shards=13)),
            ["with room for 12 of 13 shard on the driver's node"],
        ),
    ],
)
def test_a_cluster_that_is_too_small_is_refused_with_the_arithmetic(nodes, config, says):
    with pytest.raises(ConfigurationError) as error:
        place(config, *nodes)
    for part in says:
        assert part in str(error.value)


def test_a_cluster_that_grows_is_waited_for():
    place(replace(JOINED, workers=500, placement=PlacementConfig(wait_s=600)), HEAD)


def test_smaller_asks_fit():
    placement = place(
        replace(JOINED, workers=64, placement=PlacementConfig(worker_cpus=0.02)), HEAD
    )
    assert placement.options("worker", 63)["num_cpus"] == 0.02


def test_ray_chooses_the_device_on_a_cluster():
    with pytest.raises(ConfigurationError, match="say cuda, auto or cpu"):
        place(replace(JOINED, learner=LearnerConfig(device="cuda:1")), HEAD)


@pytest.mark.parametrize(
    ("gpus", "learners", "episodes", "expected"),
    [
        (1, 1, 10, (0.7, 0.05)),
        (2, 1, 10, (1.0, 0.05)),
        (2, 2, 10, (1.0, 0.0)),
        (1, 1, 0, (0.75, None)),
    ],
)
def test_the_evaluator_shares_a_gpu_where_one_has_room(gpus, learners, episodes, expected):
    config = replace(JOINED, learners=learners, eval_episodes=episodes)
    config = replace(config, learner=LearnerConfig(device="auto"))
    config = replace(config, placement=replace(config.placement, inference_gpus=0.25))
    node = Node(node_id=NAMES["gpu"], cpus=9, gpus=gpus)
    if gpus == learners == 2:  # the inference server finds no room either
        config = replace(config, placement=replace(config.placement, wait_s=60.0))
    asks = place(config, HEAD, node).asks
    evaluator = asks["evaluator"].gpus if "evaluator" in asks else None
    assert (asks["learner"].gpus, evaluator) == expected
