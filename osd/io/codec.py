"""Outcome <-> bytes: MessagePack with a schema version that is read first."""

from __future__ import annotations

import msgspec

from osd.records.errors import OsdError
from osd.records.outcome import SCHEMA_VERSION, Outcome
from osd.records.outcome_arrays import check_shapes


class OutcomeFormatError(OsdError):
    """Bytes that are no outcome of this schema."""


class _Header(msgspec.Struct):
    schema_version: int


_ENCODER = msgspec.msgpack.Encoder()
_HEADER_DECODER = msgspec.msgpack.Decoder(_Header)
_DECODER = msgspec.msgpack.Decoder(Outcome)


def encode(outcome: Outcome) -> bytes:
    """One outcome as a MessagePack map of its fields."""
    return _ENCODER.encode(outcome)


def decode(data: bytes) -> Outcome:
    """The inverse of `encode`.

    Raises:
        OutcomeFormatError: the bytes are torn or foreign, of another schema version, or an array has not the size
            that its shape needs. The message holds no content of the outcome.
    """
    try:
        # Two passes, because another version's fields may not fit this Outcome, and that should be said as such.
        version = _HEADER_DECODER.decode(data).schema_version
        if version != SCHEMA_VERSION:
            raise OutcomeFormatError(
                f"this outcome has schema version {version} and this osd reads {SCHEMA_VERSION}; "
                "run the same osd version everywhere, older outcomes are skipped"
            )
        outcome = _DECODER.decode(data)
        check_shapes(outcome)
    except (msgspec.DecodeError, ValueError) as error:
        raise OutcomeFormatError(f"these {len(data)} bytes are no outcome: {error}") from None
    return outcome
