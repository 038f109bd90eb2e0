"""What replay announces, what it refuses, and that rows beyond memory come back from disk as they
were.
"""

import tracemalloc

import numpy as np
import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import NO_POLICY, StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.codec import make_chunk
from worldloom.data.sequence_buffer import SequenceBuffer
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.budget import plan_budget
from worldloom_dist.replay.shard import ReplayShard
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import resolve

ENV = EnvSpec(
    name="x", obs={"camera": ArraySpec((32, 32, 3), "uint8")}, action={"action": ArraySpec((2,))}
)
LATENT = ENV.columns({"latent": ArraySpec((512,), "uint16")})
SAMPLING = SamplingSpec(batch_size=4, length=5, cross_episodes=True)


def noise_chunk(seq, rows=16):
    rng = np.random.default_rng(seq)
    columns = {name: spec.zeros(rows) for name, spec in LATENT.items()}
    columns["obs/camera"] = rng.integers(0, 256, (rows, 32, 32, 3), np.uint8)
    columns["latent"] = rng.integers(0, 60000, (rows, 512)).astype(np.uint16)
    columns["is_first"][0] = seq == 0
    return columns, make_chunk(StreamId(0, 0, 0), seq, NO_POLICY, columns)


@pytest.mark.parametrize("chunk_rows", [2, 5, 64])
def test_rows_take_what_was_announced_also_in_small_chunks(chunk_rows):
    rows = 12_800
    columns = EnvSpec(
        name="x", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((1,))}
    ).columns()
    announced = plan_budget(
        columns, rows=rows, ram_limit_bytes=None, has_journal=True
    ).reserved_bytes
    block = {name: spec.zeros(chunk_rows) for name, spec in columns.items()}

    def filled(capacity):
        buffer = SequenceBuffer(columns, SAMPLING, capacity_rows=capacity)
        for seq in range(2 * capacity // chunk_rows):
            buffer.append(StreamId(0, 0, 0), seq, block, place=(seq, seq, seq))
        return buffer

    filled(640)  # what numpy imports by the way is not ours
    tracemalloc.start()
    try:
        buffer = filled(rows)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(buffer) == rows
    assert taken <= 1.1 * announced


def test_the_budget_splits_memory_and_names_its_parts():
    roomy = plan_budget(LATENT, rows=100_000, ram_limit_bytes=None, has_journal=True)
    assert (roomy.is_mapped, roomy.hot_bytes) == (False, None)
    assert roomy.latent_bytes == roomy.large_bytes == 100_000 * 1024
    assert roomy.image_bytes == 100_000 * 3072
    tight = plan_budget(LATENT, rows=100_000, ram_limit_bytes=80_000_000, has_journal=True)
    assert tight.is_mapped
    assert tight.reserved_bytes < 80_000_000 < roomy.reserved_bytes
    assert tight.reserved_bytes + tight.hot_bytes <= max(
        80_000_000, tight.reserved_bytes + (64 << 20)
    )
    assert "0.10 GB of latents on disk" in tight.describe()
    assert "read back from the journal" in tight.describe()


def test_rows_that_cannot_fit_are_refused_with_the_number_that_can():
    with pytest.raises(ConfigurationError, match="ask for at most") as refusal:
        plan_budget(LATENT, rows=10_000_000, ram_limit_bytes=100_000_000, has_journal=True)
    most = int(str(refusal.value).split("at most ")[1].split(" or")[0].replace(",", "").strip())
    assert plan_budget(LATENT, rows=most, ram_limit_bytes=100_000_000, has_journal=True).is_mapped
    with pytest.raises(ConfigurationError, match="durability none"):
        plan_budget(LATENT, rows=100_000, ram_limit_bytes=80_000_000, has_journal=False)


def test_a_run_that_cannot_fit_is_refused_before_it_starts():
    words = ["--preset", "debug", "--replay.capacity-steps", "100000000", "--replay.ram-gb", "0.5"]
    with pytest.raises(
        ConfigurationError,
        match=r"replay\.capacity_steps: 100,000,000 rows need .* ask for at most",
    ):
        resolve(parse(words))
    assert resolve(parse([*words[:3], "1000", *words[4:]])).budget.reserved_bytes < 1_000_000


def open_shard(folder, **kwargs):
    return ReplayShard(
        0, LATENT, SAMPLING, capacity_rows=320, directory=folder, segment_bytes=120_000, **kwargs
    )


@pytest.mark.parametrize("restart", [False, True])
def test_rows_beyond_memory_are_sampled_from_disk_as_they_were(tmp_path, restart):
    options = {"tight": {"ram_bytes": 100_000, "is_mapped": True}, "roomy": {}}
    shards = {name: open_shard(tmp_path / name, **more) for name, more in options.items()}
    for seq in range(60):
        _, chunk = noise_chunk(seq)
        for shard in shards.values():
            shard.append(chunk)
    if restart:
        for name, more in options.items():
            shards[name].close()
            shards[name] = open_shard(tmp_path / name, **more)
    assert 0 < shards["tight"].memory_bytes() < shards["roomy"].memory_bytes() - 800_000
    a, b = (shard.sample(SampleRequest(60, (3,))) for shard in shards.values())
    np.testing.assert_array_equal(a.row_ids, b.row_ids)
    for name in LATENT:
        np.testing.assert_array_equal(a.columns[name], b.columns[name])
    source = {seq: noise_chunk(seq)[0]["obs/camera"] for seq in range(60)}
    for row, image in zip(
        a.row_ids.reshape(-1), a.columns["obs/camera"].reshape(-1, 32, 32, 3), strict=True
    ):
        np.testing.assert_array_equal(image, source[row // 16][row % 16])
    names = {path.name for path in (tmp_path / "tight").iterdir()}
    assert not {
        name for name in names if not name.startswith(("segment-", "lock", "shard.json"))
    }, "a mapped file has no name"


def test_windows_drawn_before_an_eviction_can_be_decoded_after_it(tmp_path):
    shard = open_shard(tmp_path, ram_bytes=50_000)
    for seq in range(20):
        shard.append(noise_chunk(seq)[1])
    pending = shard.rows.buffer.draw([(40, np.random.default_rng(0))])
    for seq in range(20, 60):
        shard.append(noise_chunk(seq)[1])
    assert not (tmp_path / "segment-00000000.wal").exists()
    windows = pending.decode()
    for row, image in zip(
        windows.row_ids.reshape(-1),
        windows.columns["obs/camera"].reshape(-1, 32, 32, 3),
        strict=True,
    ):
        np.testing.assert_array_equal(image, noise_chunk(row // 16)[0]["obs/camera"][row % 16])


def test_a_capacity_in_bytes_holds_whatever_the_rows_are(tmp_path):
    shard = open_shard(tmp_path, capacity_bytes=400_000)
    for seq in range(20):
        shard.append(noise_chunk(seq)[1])
        counters = shard.row_counters()
        assert counters.payload_bytes <= 400_000
        assert counters.is_balanced
    assert 0 < counters.stored < 120
    shard.close()
    assert open_shard(tmp_path, capacity_bytes=400_000).row_counters() == counters


def test_priorities_reach_the_selector_of_a_run_and_an_agent_without_them_is_refused():
    words = ["--preset", "debug", "--replay.selector"]
    assert resolve(parse([*words, "0.5*uniform+0.5*prioritised"])).spec.gives_priorities
    assert resolve(parse([*words, "online+uniform"])).spec.sampling.online
    dreamer = ["--env", "toy:point", "--agent", "dreamerv3:ci"]
    assert not resolve(parse([*dreamer, "--replay.selector", "uniform"])).spec.sampling.online
    assert resolve(parse(dreamer)).spec.sampling.online
    with pytest.raises(ConfigurationError, match="gives none"):
        resolve(parse([*dreamer, "--replay.selector", "prioritised"]))
    with pytest.raises(ConfigurationError, match="cannot read 'newest'"):
        parse([*words, "newest"])
