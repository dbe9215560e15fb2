"""Notices that the history goes on after a restart, which is then marked in it."""

from __future__ import annotations

from math import inf

from osd.monitor.buckets import TIERS
from osd.monitor.history import History
from osd.records.events import Event

_LOOK_BACK_S = 30 * 86_400.0
_HEARD_AFTER_S = 30.0
"""An engine that ran on reports within a second or so; so long none at all is waited for."""


class EarlierRun:
    """The process that wrote the history before this one.

    Args:
        history: of the service, read by this process.
        began_s: when this process began, by the wall clock.
    """

    def __init__(self, history: History, began_s: float) -> None:
        self._history, self._began_s = history, began_s
        self._engines_began_s = inf
        self._is_known = not history.is_stored

    def heard(self, engine_began_s: float) -> None:
        """An engine reports, which began then."""
        self._engines_began_s = min(self._engines_began_s, engine_began_s)

    def restart(self, now_s: float) -> Event | None:
        """The restart between the earlier process and this one, once, as soon as it is known; None: not now."""
        if self._is_known or (self._engines_began_s == inf and abs(now_s - self._began_s) < _HEARD_AFTER_S):
            return None
        ended_s, self._is_known = self._ended_s()
        if ended_s is None:
            return None
        gap = _in_words(self._began_s - ended_s)
        if self._engines_began_s < ended_s:
            actor = "supervisor"
            message = f"the supervisor was restarted; what engines counted for {gap} before is missing here"
        else:
            actor = "service"
            message = f"the service was restarted; nothing was counted for {gap} before"
        data = {"actor": actor, "from_s": ended_s, "to_s": self._began_s}
        return Event(at_s=self._began_s, kind="restart", message=message, data=data)

    def _ended_s(self) -> tuple[float | None, bool]:
        """(when the earlier process counted last, None if there was none; whether that could be read).

        It is known to five seconds, and after more than an hour to the hour.
        """
        for tier in (TIERS[0], TIERS[-1]):
            last_s = self._began_s - tier.step_s  # a bucket that begins later may be this process's own
            first_s = self._began_s - min(tier.step_s * tier.num_buckets, _LOOK_BACK_S)
            found = self._history.buckets(tier, first_s, last_s, max_events=1)
            if found.message:
                return None, False
            if found.buckets:
                return max(bucket.at_s for bucket in found.buckets) + tier.step_s, True
        return None, True


def _in_words(seconds: float) -> str:
    """Example: `40 s`, `25 min`, `3 h`, `2 days`"""
    for unit_s, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"
