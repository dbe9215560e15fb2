"""What an overflow leaves behind, put where it does harm: NaN and infinity in the rows of a key/value cache."""

from __future__ import annotations

from typing import Any

from osd.kernels.backend import Cache

_WHOLE = 1 << 20
"""More positions than a row has: all of them."""


def caches_of(engine: Any) -> list[Cache]:
    """The target's cache, and the drafters' if there are any."""
    found = [engine.target.lm.cache]
    for drafter in (arm.drafter for arm in engine.policy.arms):
        found.append(drafter.round.cache if drafter.id.name == "feature" else drafter._lm.cache)
    return found


def poison(cache: Cache, value: float, row: int, start: int = 0, stop: int | None = None) -> None:
    """Write `value` over keys and values of a row's positions `start .. stop - 1`, in every layer."""
    keys, values = (one.clone() for one in cache.row(row, _WHOLE))
    keys[:, :, start:stop] = values[:, :, start:stop] = value
    cache.write_row(row, keys, values)


def num_not_finite(cache: Cache, row: int) -> int:
    """Elements of a row's keys and values."""
    return sum(int((~one.isfinite()).sum()) for one in cache.row(row, _WHOLE))
