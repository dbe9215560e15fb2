"""Folders of compiled kernels: a process holds the one that it uses, and old ones that nobody uses are removed.

Each change of the sources, of numba or of the processor begins a new folder of some megabytes.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

_log = logging.getLogger(__name__)
_NUM_KEPT = 8
_KEPT_S = 86_400.0
_IN_USE = "in-use"
"""A file that processes which use the folder hold a shared lock on; its time is when the folder was last used."""
_NAME = re.compile(r"[0-9a-f]{24}")
_LEFT = re.compile(r"\.[0-9a-f]{24}\.removed")
_held: dict[Path, int] = {}
"""The descriptors of the locked files, which are open until the process ends."""
_guard = threading.Lock()


def hold(folder: Path) -> None:
    """Make a folder, and keep it from being removed until this process ends.

    Raises:
        OSError: it cannot be made.
    """
    with _guard:
        while folder not in _held:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                file = os.open(folder / _IN_USE, os.O_WRONLY | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue  # it was removed in between
            except OSError:
                return  # it is read-only, so nobody removes it
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_SH)
            if _is_at(file, folder / _IN_USE):
                os.utime(file)
                _held[folder] = file
            else:  # it was removed while this process waited for the lock
                os.close(file)


def remove_old(root: Path, *, num_kept: int = _NUM_KEPT, kept_s: float = _KEPT_S) -> int:
    """Remove folders of compiled kernels that nobody uses, but for the newest ones.

    Args:
        root: the folder that they are in; what else is there stays.
        num_kept: how many that were used last are kept in any case.
        kept_s: one that was used within so many seconds is kept, too.

    Returns:
        How many were removed.
    """
    found = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    for left in found:
        if _LEFT.fullmatch(left.name):  # by a process that was killed while it removed it
            shutil.rmtree(left, ignore_errors=True)
    ours = [path for path in found if _NAME.fullmatch(path.name)]
    by_use = sorted(ours, key=_last_used_s, reverse=True)
    return sum(_remove(path) for path in by_use[num_kept:] if time.time() - _last_used_s(path) > kept_s)


def _last_used_s(folder: Path) -> float:
    for path in (folder / _IN_USE, folder):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _remove(folder: Path) -> bool:
    """Whether it was removed: nobody holds it."""
    removed = folder.with_name(f".{folder.name}.removed")
    try:
        with (folder / _IN_USE).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder.rename(removed)  # at once: a half of a folder would be taken for the whole
    except OSError as error:
        _log.debug("%s stays: %s", folder, error)
        return False
    shutil.rmtree(removed, ignore_errors=True)
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False
