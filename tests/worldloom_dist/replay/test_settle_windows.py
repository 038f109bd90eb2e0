"""What a run says of its windows reaches the spec that every role reads, or is refused before
anything starts.
"""

import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.run.cli import UsageError, parse
from worldloom_dist.run.plan import Plan, resolve


def plan_of(*words: str) -> Plan:
    return resolve(parse(["--preset", "debug", "--env", "toy:counting", *words]))


def test_the_stride_reaches_the_spec():
    assert plan_of().spec.sampling.stride == 1
    assert plan_of("--replay.stride", "3").spec.sampling.stride == 3


def test_a_stride_that_would_leave_rows_out_is_refused():
    rows = plan_of().spec.sampling.window_rows
    assert plan_of("--replay.stride", str(rows)).spec.sampling.least_rows == 2 * rows - 1
    with pytest.raises(ConfigurationError, match=rf"replay\.stride.*1 to {rows}.*got {rows + 1}"):
        plan_of("--replay.stride", str(rows + 1))
    with pytest.raises(UsageError, match=r"replay\.stride"):
        plan_of("--replay.stride", "0")


def test_a_replay_that_could_be_without_a_window_is_refused():
    rows = plan_of().spec.sampling.window_rows
    small = ["--replay.capacity-steps", str(rows), "--actors.chunk-rows", "1"]
    plan_of(*small)
    with pytest.raises(ConfigurationError, match=rf"replay\.capacity_steps.*{2 * rows - 1} rows"):
        plan_of(*small, "--replay.stride", str(rows))
