"""Keeps the operator's wishes in the history's store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import msgspec

from osd.monitor.store import HistoryStore
from osd.monitor.wishes import BadWishError, Wishes
from osd.records.errors import OutcomeSinkError

_NAME = "wishes"
_decoder = msgspec.msgpack.Decoder(Wishes)


class KeptWishes:
    """The wishes as they are now. While the store is away they hold in memory, and are stored later (`settle`).

    Args:
        store: where they are kept; None: in memory only.
    """

    def __init__(self, store: HistoryStore | None) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._wishes = Wishes()
        self._is_known = store is None
        """Whether what was stored before this process has been read."""
        self._early: list[Callable[[Wishes], Wishes]] = []
        """Changes from before that was read."""
        self._is_stored = True

    @property
    def now(self) -> Wishes:
        """The wishes."""
        return self._wishes

    def change(self, change: Callable[[Wishes], Wishes]) -> Wishes:
        """Change them, and store them if possible; raises what `change` raises."""
        self.settle()
        with self._lock:
            self._wishes = change(self._wishes)
            self._is_stored = False
            if not self._is_known:
                self._early.append(change)
        self.settle()
        return self._wishes

    def settle(self) -> None:
        """Read what is stored, and store what is not; a store that is away is tried again at the next call.

        A store that somebody emptied is written again.
        """
        if self._store is None:
            return
        with self._lock:
            try:
                kept = self._store.kept(_NAME)
                if not self._is_known:
                    if kept is not None:
                        self._wishes = self._with_early(_decoder.decode(kept))
                    self._is_known = True
                elif kept is None and self._wishes != Wishes():
                    self._is_stored = False
                if not self._is_stored:
                    self._store.keep(_NAME, msgspec.msgpack.encode(self._wishes))
                    self._is_stored = True
            except (OutcomeSinkError, msgspec.MsgspecError):
                return

    def _with_early(self, stored: Wishes) -> Wishes:
        for change in self._early:
            with suppress(BadWishError):  # together they may be too many
                stored = change(stored)
        return stored
