"""Models split over several files: `name-00001-of-00003.gguf` and so on, as `llama-gguf-split` names them."""

from __future__ import annotations

import re
from pathlib import Path

from osd.loading.gguf.header import Header, read_header
from osd.records.errors import OsdError

_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})$")


def stem_of(path: Path) -> str:
    """A file's name without `.gguf` and without the number of its part."""
    part = _PART.match(path.stem)
    return part["stem"] if part else path.stem


def parts_of(path: Path) -> list[Path]:
    """The paths of all files of a model, given one of them; just `path` if it is not named as a part."""
    part = _PART.match(path.stem)
    if part is None:
        return [path]
    count = int(part["count"])
    return [path.with_name(f"{part['stem']}-{number:05}-of-{count:05}{path.suffix}") for number in range(1, count + 1)]


def read_model(path: Path) -> Header:
    """One header for all files of a model.

    Raises:
        OsdError: a file is missing or damaged, or belongs to another model.
    """
    first, *others = [_read_part(part) for part in parts_of(path)]
    expected = first.metadata.get("split.count", 1)
    if expected > 1 and expected != 1 + len(others):
        raise OsdError(
            f"{path} is one of {expected} parts; name them {stem_of(path)}-00001-of-{expected:05}.gguf and so on"
        )
    tensors = dict(first.tensors)
    for number, part in enumerate([first, *others]):
        if others and (part.metadata.get("split.no"), part.metadata.get("split.count")) != (number, 1 + len(others)):
            raise OsdError(f"{part.path} is not part {number + 1} of {1 + len(others)}; download it again")
        if number and (twice := sorted(tensors.keys() & part.tensors.keys())):
            raise OsdError(f"{part.path} and another part both have {twice[0]!r}; download them again")
        tensors |= part.tensors
    total = first.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise OsdError(f"the parts of {path} have {len(tensors)} tensors, not {total}; download them again")
    return Header(first.path, first.metadata, tensors)


def _read_part(path: Path) -> Header:
    if not path.is_file():
        raise OsdError(f"{path} is missing; a split model needs all of its parts in one folder")
    return read_header(path)
