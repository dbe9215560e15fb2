"""The digest of a GGUF file's content, under which its converted folder is stored.

Hashing takes about two seconds per gigabyte, so digests are cached by path, inode, size, mtime and ctime. A copy may
preserve mtime, but not ctime.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_REMEMBERED = "digests.json"
_SETTLED_S = 2.0
"""A file changed less than this before hashing is not cached: it may change again without a change of its times."""


def digest_of(paths: Sequence[Path], folder: Path) -> str:
    """A hexadecimal digest of the content of files, in order.

    Args:
        paths: the parts of one model.
        folder: where the cache of digests is.
    """
    known = _read(folder / _REMEMBERED)
    digests: list[str] = []
    for path in paths:
        name, stamp = str(path.resolve()), _stamp(path)
        entry = known.get(name)
        if entry is None or entry["stamp"] != stamp:
            with path.open("rb") as file:
                entry = {"stamp": stamp, "digest": hashlib.file_digest(file, _blake2b).hexdigest()}
            if _stamp(path) == stamp and time.time() - max(stamp[2], stamp[3]) / 1e9 > _SETTLED_S:
                known[name] = entry
                _write(folder / _REMEMBERED, known)
        digests.append(entry["digest"])
    return digests[0] if len(digests) == 1 else _joined(digests)


def _blake2b() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=10)


def _joined(digests: Sequence[str]) -> str:
    whole = _blake2b()
    whole.update("".join(digests).encode())
    return whole.hexdigest()


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(path: Path, known: dict[str, dict[str, Any]]) -> None:
    """Store the cache. If that fails, files are only hashed again next time."""
    with contextlib.suppress(OSError):
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(known))
        scratch.replace(path)
