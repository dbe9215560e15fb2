"""Notices that the history goes on after a restart, which is then marked in it."""

from __future__ import annotations

from math import inf

import msgspec

from osd.monitor.store import HistoryStore
from osd.records.errors import OutcomeSinkError
from osd.records.events import Event

_NAME = "counted_until"
_HEARD_AFTER_S = 30.0
"""An engine that ran on reports within a second or so; so long none at all is waited for."""
_decoder = msgspec.msgpack.Decoder(float)


class EarlierRun:
    """The process that wrote the history before this one.

    Args:
        store: of the history, where every process says until when it counted; None: there was none before.
        began_s: when this process began, by the wall clock.
    """

    def __init__(self, store: HistoryStore | None, began_s: float) -> None:
        self._store, self._began_s = store, began_s
        self._engines_began_s = inf
        self._is_read = self._is_told = False
        self._ended_s: float | None = None

    def heard(self, engine_began_s: float) -> None:
        """An engine reports, which began then."""
        self._engines_began_s = min(self._engines_began_s, engine_began_s)

    def settle(self, now_s: float) -> None:
        """Read until when the earlier process counted, and store that this one has counted until now.

        A store that is away is tried again at the next call.
        """
        if self._store is None:
            return
        try:
            if not self._is_read:
                kept = self._store.kept(_NAME)
                self._ended_s = None if kept is None else min(_decoder.decode(kept), self._began_s)
                self._is_read = True
            self._store.keep(_NAME, msgspec.msgpack.encode(now_s))
        except (OutcomeSinkError, msgspec.MsgspecError):
            return

    def restart(self, now_s: float) -> Event | None:
        """The restart between the earlier process and this one, once, as soon as it is known; None: not now."""
        is_waiting = self._engines_began_s == inf and abs(now_s - self._began_s) < _HEARD_AFTER_S
        if self._is_told or is_waiting or not self._is_read:
            return None
        self._is_told = True
        if self._ended_s is None:
            return None
        gap = _in_words(self._began_s - self._ended_s)
        if self._engines_began_s < self._ended_s:
            actor = "supervisor"
            message = f"the supervisor was restarted; what engines counted for {gap} before is missing here"
        else:
            actor = "service"
            message = f"the service was restarted; nothing was counted for {gap} before"
        data = {"actor": actor, "from_s": self._ended_s, "to_s": self._began_s}
        return Event(at_s=self._began_s, kind="restart", message=message, data=data)


def _in_words(seconds: float) -> str:
    """Example: `40 s`, `25 min`, `3 h`, `2 days`"""
    for unit_s, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"
