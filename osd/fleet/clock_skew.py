"""Says when the wall clocks of two nodes differ.

Nothing is decided by another node's clock: outcomes are ordered by their place in the stream, versions by their number,
and silence and leases are timed by one process's own monotonic clock. But times that people read would be off.
"""

from __future__ import annotations

MAX_SKEW_S = 5.0
"""More than a report takes on its way, even when the supervisor is slow to answer."""


def skew_message(whose: str, ahead_s: float, of_whom: str) -> str:
    """One line about a clock that is off; empty if it is not.

    Args:
        whose: clock.
        ahead_s: by how much it is ahead; negative if it is behind.
        of_whom: the clock it is compared with.
    """
    if abs(ahead_s) <= MAX_SKEW_S:
        return ""
    side = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"the clock of {whose} is {abs(ahead_s):.0f} s {side} {of_whom}, so times of its events are off; "
        "synchronise the nodes' clocks (NTP)"
    )
