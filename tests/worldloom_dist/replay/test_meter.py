"""A shard's meter counts what passes and starts over when it is drained."""

import pytest

from worldloom_dist.ports import WriteBack
from worldloom_dist.replay.meter import ShardMeter


def test_what_passes_a_shard_is_counted_once(tmp_path):
    meter = ShardMeter(5, tmp_path)
    (tmp_path / "segment").write_bytes(b"x" * 70)
    with meter.timed("insert"):
        meter.arrived(100)
    with pytest.raises(ValueError), meter.timed("sample"):
        raise ValueError
    meter.lagged(3)
    meter.sampled(2, 192)
    for done in (WriteBack(5, 1), WriteBack(2, 0)):
        meter.refreshed(done)
    values = meter.drain(9, 1)
    assert [
        values[f"replay_refreshed_steps_total{{outcome={o}}}"].value
        for o in ("applied", "rejected")
    ] == [7, 1]
    assert (
        values["replay_op_seconds{op=insert}"].count
        == values["replay_op_seconds{op=sample}"].count
        == 1
    )
    assert values["policy_lag_updates"].value == 3
    assert values["replay_sampled_steps_total"].value == 10
    assert values["transfer_bytes_total{path=actor_replay}"].value == 100
    assert values["transfer_bytes_total{path=replay_learner}"].value == 192
    assert [values[f"replay_bytes{{storage={s}}}"].value for s in ("ram", "disk")] == [9, 70]
    again = meter.drain(0, 0)
    assert again["replay_sampled_steps_total"].value == 0
    assert not any(name.startswith("replay_refreshed") for name in again)
