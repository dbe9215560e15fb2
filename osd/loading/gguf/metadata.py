"""Reads a file's metadata, and refuses keys that nothing reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from osd.loading.gguf.header import Header
from osd.records.errors import OsdError


class ModelKeys:
    """The keys that describe the model, `<architecture>.<name>`.

    A key that the converter never reads may change what the model computes, so `refuse_rest` raises on it.
    """

    def __init__(self, header: Header) -> None:
        self._header = header
        prefix = f"{header.architecture}."
        self._values = {
            key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)
        }
        self._asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """A value, or `default`. A list with one value per layer must hold equal values, of which one is returned.

        Raises:
            OsdError: the layers' values differ.
        """
        self._asked.add(name)
        value = self._values.get(name, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self.refusal(name, "differs from layer to layer, which is not supported")
            return value[0]
        return value

    def need(self, name: str) -> Any:
        """A required value.

        Raises:
            OsdError: the key is missing.
        """
        value = self.get(name)
        if value is None:
            raise self.refusal(name, "is missing; convert the model again")
        return value

    def expect(self, name: str, *values: Any) -> None:
        """Check that a key is absent or has one of the supported values.

        Raises:
            OsdError: it has another value.
        """
        value = self.get(name)
        if value is not None and value not in values:
            raise self.refusal(name, f"is {value!r}, which is not supported")

    def ignore(self, names: Iterable[str]) -> None:
        """Mark keys as read that do not affect what the model computes."""
        self._asked.update(names)

    def refuse_rest(self) -> None:
        """Refuse a file with a key that was never read.

        Raises:
            OsdError: names the first such key.
        """
        if rest := sorted(self._values.keys() - self._asked):
            raise self.refusal(rest[0], "is not known for this architecture, and leaving it out may change the answers")

    def refusal(self, name: str, reason: str) -> OsdError:
        """An error about one key."""
        header = self._header
        return OsdError(
            f"{header.path}: {header.architecture}.{name} {reason}; give the model's own folder (safetensors) instead"
        )
