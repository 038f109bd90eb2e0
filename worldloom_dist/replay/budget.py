"""How much memory and disk a replay will take, before anything is started: from the columns and the
capacity alone.

Small plain columns, their notes and the selector's tree are in memory for every row. Large plain
columns (an agent's latents) go to a memory-mapped file when they do not fit. Compressed images stay
in memory as long as there is room; the others are read back from the journal. How well images
compress is known only later, so for them the budget states bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import ArraySpec
from worldloom.data.rings import encoded_columns, record_dtype

__all__ = ["ReplayBudget", "plan_budget"]

INDEX_BYTES = 10.0
"""Per row: a flag, a leaf of the selector's tree (eight bytes with priorities) and its parents."""
SMALLEST_HOT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ReplayBudget:
    """What a replay takes, over all shards.

    Attributes:
        rows: Its capacity.
        ram_limit_bytes: What it may take of memory; None when nothing is known of the machines it
            runs on.
        small_bytes, large_bytes: Plain columns with their index, and large plain columns (latents).
        latent_bytes: The part of these that belongs to the agent.
        image_bytes: Images without compression: the most that they can take.
        is_mapped: Large columns lie on disk.
        hot_bytes: Memory for compressed images; None for no limit.
    """

    rows: int
    ram_limit_bytes: int | None
    small_bytes: int
    large_bytes: int
    latent_bytes: int
    image_bytes: int
    is_mapped: bool
    hot_bytes: int | None

    @property
    def reserved_bytes(self) -> int:
        """Memory that is taken however well images compress."""
        return self.small_bytes + (0 if self.is_mapped else self.large_bytes)

    @property
    def most_bytes(self) -> int:
        """Memory that is taken when images do not compress at all."""
        images = self.image_bytes if self.hot_bytes is None else self.hot_bytes
        return self.reserved_bytes + min(images, self.image_bytes)

    def describe(self) -> str:
        """One line for people."""
        parts = [
            f"{self.rows:,} rows",
            f"{_gb(self.reserved_bytes)} GB of memory for vectors and index",
        ]
        if self.latent_bytes:
            where = "on disk (memory-mapped)" if self.is_mapped else "in memory"
            parts.append(f"{_gb(self.latent_bytes)} GB of latents {where}")
        if self.image_bytes:
            images = f"images of at most {_gb(self.image_bytes)} GB, compressed"
            if self.hot_bytes is not None and self.hot_bytes < self.image_bytes:
                images += (
                    f": up to {_gb(self.hot_bytes)} GB in memory, what exceeds it is read "
                    "back from the journal"
                )
            parts.append(images)
        return "; ".join(parts)


def plan_budget(
    columns: Mapping[str, ArraySpec], *, rows: int, ram_limit_bytes: int | None, has_journal: bool
) -> ReplayBudget:
    """Split a memory limit over the columns.

    Args:
        columns: What every row has.
        rows: Capacity over all shards.
        ram_limit_bytes: Memory that all shards together may take; None sets no limit.
        has_journal: Rows are on disk too, so memory may be exceeded.

    Raises:
        ConfigurationError: If the rows cannot fit; says how many can.
    """
    extras = set(SequenceBatch.from_columns(columns).extras)
    images = encoded_columns(columns, extras)
    plain = {name: spec for name, spec in columns.items() if name not in images}
    dtype = record_dtype(plain)
    large = {name: spec.nbytes for name, spec in plain.items() if name not in (dtype.names or ())}
    small_bytes = int(rows * (dtype.itemsize + INDEX_BYTES))
    large_bytes = rows * sum(large.values())
    image_bytes = rows * sum(columns[name].nbytes for name in images)
    latent_bytes = rows * sum(columns[name].nbytes for name in extras)
    limit = ram_limit_bytes
    is_mapped = (
        limit is not None and has_journal and small_bytes + large_bytes > limit and bool(large)
    )
    reserved = small_bytes + (0 if is_mapped else large_bytes)
    if limit is not None and reserved > limit:
        per_row = reserved / rows
        why = (
            ""
            if has_journal or not large
            else " (latents cannot go to disk with --replay.durability none)"
        )
        raise ConfigurationError(
            f"replay.capacity_steps: {rows:,} rows need {_gb(reserved)} GB of "
            f"memory{why}, and replay may take {_gb(limit)} GB; "
            f"ask for at most {int(limit / per_row):,}, or allow more with --replay.ram-gb"
        )
    hot_bytes = None
    if limit is not None and image_bytes:
        hot_bytes = max(limit - reserved, SMALLEST_HOT_BYTES)
    return ReplayBudget(
        rows, limit, small_bytes, large_bytes, latent_bytes, image_bytes, is_mapped, hot_bytes
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f}" if size < 1e10 else f"{size / 1e9:,.0f}"
