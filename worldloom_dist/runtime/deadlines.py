"""How long the processes of a run wait for each other: the one place that tells all of it.

A deadline is where waiting ends and something else happens (another process is started, a call is
made again, the run goes on without). How often something is looked at is an interval, and stands
where it is looked at. What a user may change is in the run's config, not here. What a socket waits
for is in ``worldloom_dist.rpc.connection``, what a run waits for its evaluations in
``worldloom_dist.run.evaluations``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEADLINES", "Deadlines"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadlines:
    """In seconds; grouped by who waits."""

    # the supervisor, for a process
    start_s: float = 180.0
    """Until it first answers; longer where ``placement.wait_s`` says so."""
    ping_s: float = 30.0
    """Silence after which it counts as hanging."""
    ping_learner_s: float = 120.0
    """The same for a learner, which may compile."""
    ping_margin_worker_s: float = 10.0
    """A worker may be silent for ``ping_s`` or as long as its env may take, and for this beyond it:
    an env can hold the interpreter."""
    leave_s: float = 20.0
    """To end after it was asked to leave its machine."""
    hear_s: float = 2.0
    """For its last log lines, before it is ended."""

    # the driver
    former_learner_s: float = 5.0
    """For the process of a learner that was killed to end, before its standby takes over."""
    look_s: float = 5.0
    """For the coordinator's and the hub's numbers; without them the last ones stay."""
    last_look_s: float = 15.0
    """The same at the end of the run, where there is no next time."""
    measure_s: float = 60.0
    """For what decisions were measured to cost, before inference is placed without."""
    place_learners_s: float = 60.0
    """For the cluster to have room for all ranks; longer where ``placement.wait_s`` says so."""

    # the driver, at the end of a run (in brackets: of one that failed)
    stop_workers_s: float = 15.0
    stop_workers_failed_s: float = 10.0
    stop_learner_s: float = 60.0
    stop_learner_failed_s: float = 30.0
    drain_s: float = 10.0
    """For a coordinator to let everything in, before it is replaced."""
    finalize_s: float = 15.0
    """For every shard's final counters."""
    come_back_s: float = 60.0
    """In all, for roles that have died meanwhile."""

    # the driver, after the last evaluation
    note_score_s: float = 30.0
    """For the learner to take the last score."""

    # every role, for the coordinator
    coordinator_patience_s: float = 120.0
    """For its successor, where a role cannot go on without an answer."""
    counts_s: float = 5.0
    """For its counters, where a role can go on with older ones."""
    counts_patience_s: float = 10.0
    """The same for its successor's, before a checkpoint is written with older ones."""

    # the coordinator
    shard_silent_s: float = 4.0
    """A shard that has not reported for this time, while others have, is not sampled from; each
    reports about once a second."""
    deaf_s: float = 2.0
    """When no shard was heard for this time, the coordinator itself stood still, and their reports
    are on their way."""

    # a shard
    read_s: float = 600.0
    """Without a byte of its journal read, after which it counts as hanging."""
    final_report_s: float = 5.0
    """For the coordinator to take its final counters."""
    predecessor_s: float = 15.0
    """A process that hung is killed, and may hold its journal for a few seconds more."""

    # a worker
    permit_s: float = 30.0
    """Silence of the coordinator, which answers within a second, after which a question for steps
    is asked again."""
    append_patience_s: float = 5.0
    """For a shard's successor, before it looks whether the run is stopped meanwhile."""
    act_s: float = 120.0
    """Silence of an inference server after which a question is asked again."""
    act_patience_s: float = 300.0
    """For an inference server's successor."""

    # a learner
    take_over_s: float = 30.0
    """For a standby that was told to go on, to hear in which incarnation."""
    sample_s: float = 30.0
    """For a shard's windows, before they come from other shards."""
    any_shard_s: float = 120.0
    """Until one shard at least gives windows."""
    rendezvous_s: float = 180.0
    """For all ranks to meet."""
    last_publish_s: float = 5.0
    """For the weight store to take the last version."""
    last_videos_s: float = 10.0
    """For the last predictions to be drawn."""

    # an acting role, for the weight store
    weights_s: float = 10.0
    """While there are older weights to act with."""
    weights_evaluation_s: float = 60.0
    """For an evaluation, which has none."""


DEADLINES = Deadlines()
