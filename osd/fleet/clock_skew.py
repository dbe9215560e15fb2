"""Says when the wall clocks of two nodes differ.

Nothing is decided by another node's clock: outcomes are ordered by their place in the stream, versions by their number,
and silence and leases are timed by one process's own monotonic clock. But times that people read would be off.
"""

from __future__ import annotations

from collections import defaultdict, deque

MAX_SKEW_S = 5.0
_NUM_REPORTS = 5


class ClockSkew:
    """Finds engines whose clocks are off.

    A report that waited for a supervisor which was restarted is old, and looks like one of a clock that is behind. So
    the least difference of the newest reports counts.
    """

    def __init__(self) -> None:
        self._ahead_s: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_NUM_REPORTS))
        self._told: set[str] = set()

    def take(self, engine_id: str, ahead_s: float) -> str:
        """One line about an engine whose clock is off, once while it is; empty otherwise.

        Args:
            engine_id: of the engine.
            ahead_s: the report's time less the supervisor's.
        """
        newest = self._ahead_s[engine_id]
        newest.append(ahead_s)
        if len(newest) < _NUM_REPORTS:
            return ""
        message = skew_message(f"engine {engine_id}'s node", min(newest, key=abs), "the supervisor's")
        if not message:
            self._told.discard(engine_id)
        if not message or engine_id in self._told:
            return ""
        self._told.add(engine_id)
        return message


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
