"""What workers have in hand: bound by the train ratio and the run's steps, whatever dies."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom.data.rate_limiter import RateLimiter, RateLimits
from worldloom_dist.ports import RowCounters, SampleRequest, StepQuestion
from worldloom_dist.replay.coordinator import ReplayCoordinator

LIMITS = RateLimits(train_ratio=1.0, prefill_agent_steps=100, batch_positions=16)
WINDOW = 16


@dataclass
class Worker:
    """Makes steps by permit, and sends them in chunks to the one shard."""

    slot: int
    envs: int
    incarnation: int = 0
    number: int = 0
    left: int = 0
    made: int = 0
    open_chunk: int = 0

    def question(self) -> StepQuestion:
        self.number += 1
        return StepQuestion(
            self.slot,
            self.incarnation,
            self.number,
            self.made,
            self.open_chunk,
            self.envs,
            64 * self.envs,
        )

    def restart(self) -> None:
        self.incarnation += 1
        self.number = self.left = self.made = self.open_chunk = 0


@dataclass
class Run:
    """A coordinator, one shard, workers and a learner, in one thread."""

    workers: list[Worker]
    target: int
    limits: RateLimits = LIMITS
    stored: int = 0
    trained: int = 0
    saved: int = 0
    coordinator: ReplayCoordinator = field(init=False)

    def __post_init__(self) -> None:
        self.restart_coordinator()

    @property
    def limiter(self) -> RateLimiter:
        return self.coordinator.limiter

    def restart_coordinator(self) -> None:
        self.coordinator = ReplayCoordinator(self.limits, window_positions=WINDOW)
        counters = RowCounters(agent_steps=self.stored)
        self.coordinator.rebuild({0: (counters, 100)}, self.trained)

    def act(self, worker: Worker) -> bool:
        """One decision, if it may be made."""
        if worker.left < worker.envs:
            worker.left = self.coordinator.try_make(worker.question(), self.target)
        if worker.left < worker.envs:
            return False
        worker.left -= worker.envs
        worker.made += worker.envs
        worker.open_chunk += worker.envs
        return True

    def send(self, worker: Worker) -> None:
        self.coordinator.arrived(0, worker.slot, worker.incarnation, worker.open_chunk)
        self.stored += worker.open_chunk
        worker.open_chunk = 0

    def train(self) -> bool:
        if self.coordinator.try_sample(SampleRequest(1, (self.trained,))) is None:
            return False
        self.trained += WINDOW
        return True

    def kill_worker(self, worker: Worker) -> None:
        self.coordinator.permits.gone(worker.slot, worker.incarnation)
        worker.restart()

    def kill_learner(self) -> None:
        self.trained = self.saved
        self.limiter.rebase(self.limiter.agent_steps, self.saved)

    def complete(self) -> None:
        """Go on, with chunks that are sent only where someone waits, until nothing happens."""
        while True:
            has_acted = sum(self.act(worker) for worker in self.workers) > 0
            has_trained = self.train()
            if not (has_acted or has_trained):
                if not any(worker.open_chunk for worker in self.workers):
                    return
                for worker in self.workers:
                    self.send(worker)


@pytest.mark.parametrize(("workers", "envs"), [(64, 1), (64, 3), (4, 16), (1, 1), (2, 100)])
def test_a_run_of_many_workers_ends_where_it_was_asked_to_and_has_paid_what_it_owes(workers, envs):
    run = Run([Worker(slot, envs) for slot in range(workers)], target=3000)
    run.complete()
    assert 3000 <= run.stored < 3000 + envs, "less than one step per env of a worker beyond it"
    assert abs(run.trained - (run.stored - 100)) <= run.limits.slack_insert


ACTS = st.sampled_from(
    (
        *("act", "act", "act", "send", "train", "train"),
        *("checkpoint", "kill worker", "kill learner", "restart coordinator"),
    )
)


@given(
    acts=st.lists(st.tuples(ACTS, st.integers(0, 7)), max_size=400),
    envs=st.sampled_from((1, 2, 5)),
    prefill=st.sampled_from((0, 30, 100)),
    pretrain=st.sampled_from((0, 3)),
)
@settings(max_examples=150, derandomize=True, deadline=None)
def test_a_run_keeps_its_ratio_and_completes_whatever_dies(acts, envs, prefill, pretrain):
    limits = RateLimits(
        train_ratio=1.0,
        prefill_agent_steps=prefill,
        batch_positions=WINDOW,
        pretrain_updates=pretrain,
    )
    run = Run([Worker(slot, envs) for slot in range(8)], target=400, limits=limits)
    most = max(limits.slack_insert, limits.pretrain_positions + limits.max_insert_steps)
    for act, index in acts:
        worker = run.workers[index]
        if act == "act":
            run.act(worker)
        elif act == "send":
            run.send(worker)
        elif act == "train":
            run.train()
        elif act == "checkpoint":
            run.saved = run.trained
        elif act == "kill worker":
            run.kill_worker(worker)
        elif act == "kill learner":
            run.kill_learner()
        else:
            run.restart_coordinator()
        in_hand = sum(worker.open_chunk + worker.left for worker in run.workers)
        if "restart coordinator" not in dict(acts):
            assert run.limiter.steps_in_hand == in_hand
        if not {"restart coordinator", "kill learner"} & set(dict(acts)):
            made = run.stored + in_hand
            assert made < prefill or (
                made - prefill + limits.pretrain_positions - run.trained <= most
            ), "what is in open chunks counts towards the band"
    run.complete()
    assert 400 <= run.stored < 400 + 8 * envs
    owed = run.stored - prefill + limits.pretrain_positions
    assert -limits.slack_sample <= owed - run.trained < WINDOW


def test_updates_that_died_with_a_learner_are_owed_and_workers_wait_for_them():
    run = Run([Worker(0, 1)], target=10_000)
    while run.stored < 1000:
        run.act(run.workers[0])
        run.send(run.workers[0])
        while run.train():
            pass
    for _ in range(3):
        run.kill_learner()
        run.workers[0].left = 0
        assert run.trained == 0
        assert not run.act(run.workers[0])
        before = run.stored
        while not run.act(run.workers[0]):
            assert run.train()
        assert run.stored == before
        assert run.stored - 100 - run.trained <= LIMITS.slack_insert
        while run.train():
            pass


def test_a_worker_that_has_a_successor_gets_nothing_and_takes_nothing_away():
    run = Run([Worker(0, 1)], target=1000)
    dead = Worker(0, 1)
    assert run.act(dead)
    successor = Worker(0, 1, incarnation=1)
    assert run.act(successor)
    in_hand = run.limiter.steps_in_hand
    assert run.coordinator.try_make(dead.question(), 1000) == 0
    run.coordinator.permits.gone(0, 0)
    assert run.limiter.steps_in_hand == in_hand == successor.left + successor.open_chunk


def test_a_chunk_that_comes_again_after_its_shard_died_is_counted_once():
    run = Run([Worker(0, 1)], target=1000)
    worker = run.workers[0]
    for _ in range(10):
        run.act(worker)
    run.coordinator.arrived(0, 0, 0, 10)
    run.coordinator.join(0, RowCounters(agent_steps=0), 100)  # before it was stored
    worker.left = 0
    run.coordinator.try_make(question := worker.question(), 1000)
    permitted = run.limiter.steps_in_hand - 10
    assert question.in_chunks == 10
    assert permitted > 0
    run.coordinator.arrived(0, 0, 0, 10)
    assert run.limiter.agent_steps == 10
    assert run.limiter.steps_in_hand == permitted
