"""What a run has to show is read in the order in which it was made."""

import numpy as np

from worldloom.core.sequence import Chunk, PolicyVersion, StreamId, rows_from_gym
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.codec import encode_rows
from worldloom_dist.replay.journal import Journal
from worldloom_dist.replay.records import CHUNK, StoredChunk
from worldloom_dist.reproduce.record import training_episodes

ENV = EnvSpec(name="toy", obs={"obs": ArraySpec((1,))}, action={"action": ArraySpec((1,))})


def test_a_clock_that_is_set_back_does_not_mix_up_episodes(tmp_path):
    end = np.arange(4) == 3
    rows = rows_from_gym(
        {"obs": np.zeros((5, 1), np.float32)},
        {"action": np.zeros((4, 1), np.float32)},
        np.array([1.0, 2.0, 3.0, 4.0], np.float32),
        end,
        np.zeros(4, bool),
    )
    journal = Journal(tmp_path / "replay" / "shard-0")
    journal.rotate(b"")
    for seq, (start, stop, clock_s) in enumerate(((0, 3, 9000.0), (3, 5, 5000.0))):
        part = encode_rows({name: value[start:stop] for name, value in rows.items()})
        stream = StreamId(0, 1, 0)
        chunk = Chunk(stream, seq, PolicyVersion(1, seq), stop - start, stop - start, part)
        journal.append(CHUNK, StoredChunk(chunk, start, start, clock_s).pack())
    journal.sync()
    journal.close()
    (episode,) = training_episodes(tmp_path, ENV.columns(), 1)
    assert (episode["return"], episode["length"], episode["ended"]) == (10.0, 4, "last")
