"""Compares a drafter version's acceptance with another's.

The measure is the share of rounds whose *first* proposed token was accepted. Unlike accepted / proposed it does not
depend on the speculation length, which the policy adapts to acceptance. The decision is a two-proportion z-test on the
newest rounds of both versions. So that one hard query does not decide, several queries are needed, and correlated
rounds of one query count less.
"""

from __future__ import annotations

from math import sqrt
from typing import Literal

from osd.config.versions import SwapConfig
from osd.fleet.first_token_window import FirstTokenWindow

Verdict = Literal["undecided", "sound", "worse"]
"""On a new version: `undecided` until there are enough rounds."""

_MIN_QUERIES = 3
_LEAST_CORRELATION = 0.1
"""Lower bound for the correlation of rounds of one query, since a few queries may look more alike than they are."""


def is_known(window: FirstTokenWindow, config: SwapConfig) -> bool:
    """Whether a window holds enough to be compared."""
    return len(window) >= config.min_rounds and window.num_queries >= _MIN_QUERIES


def fall_z(before: FirstTokenWindow, after: FirstTokenWindow) -> float:
    """By how many standard errors acceptance fell; negative if it rose. Neither window may be empty."""
    # Estimated from `before`, which usually holds more rounds.
    correlation = max(before.correlation(), _LEAST_CORRELATION)
    old, new = before.estimate(correlation), after.estimate(correlation)
    return (old.rate - new.rate) / sqrt(old.variance + new.variance)


def compare(before: FirstTokenWindow, after: FirstTokenWindow, config: SwapConfig) -> Verdict:
    """The verdict on the version of `after`: worse as soon as that is significant, sound after `watch_rounds`."""
    if not (is_known(before, config) and is_known(after, config)):
        return "undecided"
    if fall_z(before, after) > config.roll_back_z:
        return "worse"
    return "sound" if len(after) >= config.watch_rounds else "undecided"
