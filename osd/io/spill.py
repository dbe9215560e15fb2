"""The spill file: a bounded queue on disk for outcomes that cannot be delivered at present.

Layout: magic, 8-byte offset of the first unconsumed record, then records: length and CRC-32 (4 bytes each; all
numbers little-endian) and the encoded outcome. If the process dies, at worst the last record is incomplete; it is
dropped when the file is opened again. Nothing is fsynced, so a crash of the machine may lose the last seconds.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from osd.io.codec import OutcomeFormatError, decode, encode
from osd.records.outcome import Outcome

logger = logging.getLogger(__name__)

_MAGIC = b"osdspil1"
_OFFSET = struct.Struct("<Q")
_HEADER_BYTES = len(_MAGIC) + _OFFSET.size
_RECORD = struct.Struct("<II")


def adopt_spill(former: Path, path: Path) -> None:
    """Give an engine that has no spill file the one that another name was used for; of several, the first gets it."""
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        former.rename(path)
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("cannot take %s over: %s", former, error.strerror)


def adopt_orphans(spill: SpillFile, folder: Path, max_bytes: int) -> None:
    """Take over the outcomes of spill files that no process uses, as far as there is room.

    Args:
        spill: the file that takes them.
        folder: holds the spill files of all engines on this machine.
        max_bytes: largest size of each.
    """
    for path in sorted(folder.glob("*.spill")):
        if path == spill.path or not _is_unused(path):
            continue
        orphan = SpillFile(path, max_bytes)
        try:
            for outcome in orphan.replay():
                if not spill.append(outcome):
                    return
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("cannot take %s over: %s", path, error.strerror)
        finally:
            orphan.close()


def _is_unused(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a process holds it, or removed it
        return False
    return True


class SpillFile:
    """A first-in-first-out file of outcomes, for one thread of one process.

    A full or missing disk never raises: `append` returns False, and the next call tries again. Disk space of consumed
    outcomes is freed when the last outcome is consumed.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Open or create the file.

        Args:
            path: Where the file is; its folder is created.
            max_bytes: Largest size of the file; 0 stores nothing and creates no file.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._fd = -1
        self._start = self._end = _HEADER_BYTES
        self._open()

    def append(self, outcome: Outcome) -> bool:
        """Add an outcome at the end; False when the file would exceed `max_bytes`, or the write fails."""
        data = encode(outcome)
        record = _RECORD.pack(len(data), zlib.crc32(data)) + data
        if not self._open() or self._end + len(record) > self._max_bytes:
            return False
        try:
            self._write(record, self._end)
        except OSError as error:
            logger.warning("cannot spill to %s: %s", self.path, error.strerror)
            return False
        self._end += len(record)
        return True

    def replay(self) -> Iterator[Outcome]:
        """Every outcome, oldest first. Asking for the next one consumes the one before; leaving the loop keeps it.

        Includes outcomes appended meanwhile. One that does not decode (another schema version) is consumed.
        """
        while self._open() and self._start < self._end:
            try:
                data = self._read(self._start)
            except OSError as error:
                logger.warning("cannot read %s: %s", self.path, error.strerror)
                return
            if data is None:
                logger.warning("%s is damaged; dropping its %d bytes", self.path, self._end - self._start)
                self._consume_to(self._end)
                return
            try:
                outcome = decode(data)
            except OutcomeFormatError as error:
                logger.warning("skipping an entry of %s: %s", self.path, error)
            else:
                yield outcome
            self._consume_to(self._start + _RECORD.size + len(data))

    def close(self) -> None:
        """Close the file; its outcomes stay, and the next use opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> bool:
        """Open the file unless it is open; whether it is open now."""
        if self._fd >= 0 or self._max_bytes <= _HEADER_BYTES:
            return self._fd >= 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)  # for its owner only: prompts are private
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._recover()
        except OSError as error:
            logger.warning("cannot use the spill file %s: %s", self.path, error.strerror)
            self.close()
        return self._fd >= 0

    def _recover(self) -> None:
        """Find the records that an earlier process left, up to the first incomplete one."""
        size_bytes = os.fstat(self._fd).st_size
        header = os.pread(self._fd, _HEADER_BYTES, 0)
        is_ours = len(header) == _HEADER_BYTES and header.startswith(_MAGIC)
        start = _OFFSET.unpack_from(header, len(_MAGIC))[0] if is_ours else size_bytes
        if not _HEADER_BYTES <= start < size_bytes:  # foreign or new, or emptied before its offset was reset
            start = size_bytes = _HEADER_BYTES
            os.ftruncate(self._fd, 0)
            self._write(_MAGIC + _OFFSET.pack(start), 0)
        self._start = self._end = start
        while (data := self._read(self._end)) is not None:
            self._end += _RECORD.size + len(data)
        if self._end < size_bytes:
            logger.warning("dropping %d torn bytes at the end of %s", size_bytes - self._end, self.path)
            os.ftruncate(self._fd, self._end)

    def _read(self, offset: int) -> bytes | None:
        """The record at `offset`, without length and CRC; None when it is incomplete or damaged."""
        framing = os.pread(self._fd, _RECORD.size, offset)
        if len(framing) < _RECORD.size:
            return None
        size_bytes, checksum = _RECORD.unpack(framing)
        data = os.pread(self._fd, min(size_bytes, self._max_bytes), offset + _RECORD.size)
        return data if len(data) == size_bytes and zlib.crc32(data) == checksum else None

    def _write(self, data: bytes, offset: int) -> None:
        """Write all of `data`. If it fails, what was written after `_end` is overwritten by the next append."""
        written = 0
        while written < len(data):
            written += os.pwrite(self._fd, data[written:], offset + written)

    def _consume_to(self, offset: int) -> None:
        """Move the start, on disk too, so that a process that dies replays few outcomes twice."""
        self._start = offset
        if self._start == self._end:
            self._start = self._end = _HEADER_BYTES
        try:
            if self._end == _HEADER_BYTES:
                os.ftruncate(self._fd, self._end)  # before the offset: one past the end means empty
            self._write(_OFFSET.pack(self._start), len(_MAGIC))
        except OSError as error:
            logger.warning("cannot mark what was replayed in %s: %s", self.path, error.strerror)
