"""Outcomes as bytes: MessagePack with a schema version that is checked first."""

from __future__ import annotations

import msgspec

from osd.records.errors import OsdError
from osd.records.outcome import SCHEMA_VERSION, Outcome
from osd.records.outcome_arrays import check_shapes


class OutcomeFormatError(OsdError):
    """These bytes are not an outcome of this schema version."""


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
        OutcomeFormatError: the bytes are truncated or not an outcome, have another schema version, or an array's size
            does not match its shape. The message holds nothing of the outcome's content.
    """
    try:
        # The version is decoded on its own first: another version's fields may not fit this Outcome class.
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
