"""Reading a file's metadata so that nothing in it is passed over by accident."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from osd.loading.gguf.header import Header
from osd.records.errors import OsdError


class ModelKeys:
    """The keys that describe the model, `<architecture>.<name>`, each asked for once by its name.

    A key that nobody asked for would be a part of the model that is dropped: `refuse_rest` names it.
    """

    def __init__(self, header: Header) -> None:
        self._header = header
        prefix = f"{header.architecture}."
        self._values = {
            key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)
        }
        self._asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """A value; of one that is given for each layer, the one that all layers share.

        Raises:
            OsdError: layers differ.
        """
        self._asked.add(name)
        value = self._values.get(name, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self.refusal(name, "differs from layer to layer, which is not supported")
            return value[0]
        return value

    def need(self, name: str) -> Any:
        """A value without which there is no model.

        Raises:
            OsdError: it is missing.
        """
        value = self.get(name)
        if value is None:
            raise self.refusal(name, "is missing; convert the model again")
        return value

    def expect(self, name: str, *values: Any) -> None:
        """Check a value that is supported only as it usually is; absent is as good.

        Raises:
            OsdError: it is something else.
        """
        value = self.get(name)
        if value is not None and value not in values:
            raise self.refusal(name, f"is {value!r}, which is not supported")

    def ignore(self, names: Iterable[str]) -> None:
        """Pass over keys that change nothing in what the model computes."""
        self._asked.update(names)

    def refuse_rest(self) -> None:
        """Refuse a file with keys that were not asked for.

        Raises:
            OsdError: naming the first.
        """
        if rest := sorted(self._values.keys() - self._asked):
            raise self.refusal(rest[0], "is not known for this architecture, and leaving it out may change the answers")

    def refusal(self, name: str, reason: str) -> OsdError:
        """An error that names a key."""
        header = self._header
        return OsdError(
            f"{header.path}: {header.architecture}.{name} {reason}; give the model's own folder (safetensors) instead"
        )
