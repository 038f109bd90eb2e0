"""The budget of a worker: what it asks, when it waits, when it sends."""

from collections import deque
from collections.abc import Callable

from tests.worldloom_dist.actors.test_rollout_worker import counting_sink, make_worker
from worldloom_dist.actors.groups import GroupedWorker
from worldloom_dist.actors.step_budget import StepBudget
from worldloom_dist.ports import StepPermit, StepQuestion


class Coordinator:
    """Answers with what it was given, and asks for rows when that is nothing."""

    def __init__(self, *permits: int) -> None:
        self.permits = deque(permits)
        self.asked: list[StepQuestion] = []
        self.is_stopping = False

    def submit(self, question: StepQuestion) -> Callable[[], StepPermit]:
        self.asked.append(question)
        return self._answer

    def _answer(self) -> StepPermit:
        steps = self.permits.popleft() if self.permits else 0
        if not self.permits and not steps:
            self.is_stopping = True
        return StepPermit(steps, must_send=steps == 0)

    def budget(self) -> StepBudget:
        return StepBudget(2, 7, self.submit, lambda: self.is_stopping)


def test_a_worker_makes_what_it_may_and_asks_for_more_while_its_envs_step():
    sink = counting_sink()
    coordinator = Coordinator(6, 3, 0)
    worker = make_worker(sink, num_envs=3, chunk_rows=64, budget=coordinator.budget())
    written = [worker.step() for _ in range(5)]
    # the first rows are resets, and no steps
    assert written == [3, 3, 3, 3, 0]
    assert worker.agent_steps == 9
    assert worker.open_rows == 0, "who waited for its rows has them"
    assert [question.made for question in coordinator.asked] == [0, 6, 9]
    assert [question.in_chunks for question in coordinator.asked] == [0, 6, 9]
    assert [question.number for question in coordinator.asked] == [1, 2, 3]
    assert all(question.least == 3 for question in coordinator.asked)
    assert worker.step() == 0, "it is to stop"


def test_steps_that_were_not_made_are_returned_by_asking():
    sink = counting_sink()
    coordinator = Coordinator(4, 3, 0)
    budget = coordinator.budget()
    worker = make_worker(sink, num_envs=3, budget=budget)
    worker.step()  # resets
    worker.step()  # 3 of 4
    worker.step()
    assert worker.agent_steps == 6
    assert [(question.made, question.least) for question in coordinator.asked] == [
        (0, 3),
        (3, 3),
        (6, 3),
    ]


def test_the_groups_of_a_worker_share_a_budget_and_send_together():
    sink = counting_sink()
    coordinator = Coordinator(4, 0)
    budget = coordinator.budget()
    worker = GroupedWorker(
        [
            make_worker(sink, num_envs=2, first_env=first, chunk_rows=64, budget=budget)
            for first in (0, 2)
        ]
    )
    while not coordinator.is_stopping:
        worker.step()
    assert worker.agent_steps == 4
    assert worker.open_rows == 0
    assert coordinator.asked[-1].in_chunks == 4
    worker.close()


def test_waiting_for_steps_counts_as_blocked():
    sink = counting_sink()
    seconds = iter(range(1000))
    coordinator = Coordinator(3, 0)
    budget = StepBudget(
        2,
        7,
        coordinator.submit,
        lambda: coordinator.is_stopping,
        clock=lambda: float(next(seconds)),
    )
    worker = make_worker(sink, num_envs=3, budget=budget)
    while worker.step():
        pass
    assert worker.drain_metrics()["actor_seconds_total{state=blocked}"].value >= 2.0
    assert worker.drain_metrics()["actor_seconds_total{state=blocked}"].value < 1.0


def test_a_worker_that_waits_can_do_something_else_before_every_wait():
    coordinator = Coordinator(0, 0, 3)
    coordinator.permits = deque((0, 0, 3))
    waits: list[int] = []
    budget = StepBudget(
        2, 7, coordinator.submit, lambda: False, lambda: waits.append(len(coordinator.asked))
    )
    assert budget.take(3)
    assert waits == [0, 1, 2]
    assert budget.take(3), "what is left needs no wait"
    assert len(waits) == 3
