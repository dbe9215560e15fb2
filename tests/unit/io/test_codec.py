"""Outcomes survive their encoding; what is no outcome is refused with a reason."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from osd.io.codec import OutcomeFormatError, decode, encode
from osd.records.drafter_id import DrafterId
from osd.records.outcome import ACCEPTED, BONUS, RECOVERED, SCHEMA_VERSION, Outcome, Round, Sampling, Timings
from osd.records.outcome_arrays import LOWEST_LOGPROB, hidden_states, pack_hidden, pack_top_k, top_k_arrays
from tests.kit.outcome_samples import sample_outcome

_TOKENS = st.integers(0, 2**31 - 1)
_FLOATS = st.floats(0, 1e9)


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    prompt_ids = draw(st.lists(_TOKENS, min_size=1, max_size=4).map(tuple))
    output_ids = draw(st.lists(_TOKENS, min_size=1, max_size=4).map(tuple))
    top_k, hidden_size = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    hidden_start = draw(st.integers(0, len(prompt_ids)))
    cells = len(output_ids) * top_k
    hidden_bytes = 2 * hidden_size * (len(prompt_ids) + len(output_ids) - 1 - hidden_start)
    return Outcome(
        request_id=draw(st.text()),
        domain=draw(st.text()),
        target_id=draw(st.text()),
        drafter_kind=draw(st.sampled_from(["feature", "model"])),
        created_at_s=draw(_FLOATS),
        prompt_ids=prompt_ids,
        output_ids=output_ids,
        output_kinds=bytes(draw(st.sampled_from([ACCEPTED, RECOVERED, BONUS])) for _ in output_ids),
        rounds=tuple(draw(st.lists(st.builds(Round, _TOKENS, _TOKENS, _TOKENS, st.text()), max_size=3))),
        top_k=top_k,
        top_ids=draw(st.binary(min_size=4 * cells, max_size=4 * cells)),
        top_logprobs=draw(st.binary(min_size=2 * cells, max_size=2 * cells)),
        hidden_size=hidden_size,
        hidden_start=hidden_start,
        hidden=draw(st.binary(min_size=hidden_bytes, max_size=hidden_bytes)),
        sampling=draw(st.builds(Sampling, temperature=_FLOATS, top_k=_TOKENS)),
        timings=draw(st.builds(Timings, queue_ms=_FLOATS, total_ms=_FLOATS)),
        finish_reason=draw(st.sampled_from(["stop", "length", "cancelled"])),
    )


@given(outcomes())
def test_decoding_undoes_encoding(outcome: Outcome) -> None:
    assert decode(encode(outcome)) == outcome


_OF_BEFORE = bytes.fromhex(
    "de0013ae736368656d615f76657273696f6e01aa726571756573745f6964a3722d31a6646f6d61696ea764656661756c74a97461726765"
    "745f6964a474696e79ac647261667465725f6b696e64a766656174757265ac637265617465645f61745f73cb41d954fc40000000aa7072"
    "6f6d70745f696473920506aa6f75747075745f696473920001ac6f75747075745f6b696e6473c4026261a6726f756e64739193030101a5"
    "746f705f6b01a7746f705f696473c4080000000001000000ac746f705f6c6f6770726f6273c404f1b725baab68696464656e5f73697a65"
    "02ac68696464656e5f737461727400a668696464656ec40cc53f96be0bc0123f8bbfb3bfa873616d706c696e6786ab74656d7065726174"
    "757265cb3ff0000000000000a5746f705f70cb3ff0000000000000a5746f705f6b00a56d696e5f70cb0000000000000000b07072657365"
    "6e63655f70656e616c7479cb0000000000000000b16672657175656e63795f70656e616c7479cb0000000000000000a774696d696e6773"
    "85a871756575655f6d73cb0000000000000000aa70726566696c6c5f6d73cb0000000000000000a864726166745f6d73cb000000000000"
    "0000a97665726966795f6d73cb0000000000000000a8746f74616c5f6d73cb0000000000000000ad66696e6973685f726561736f6ea473"
    "746f70"
)
"""Written before rounds named their drafter and outcomes their engine."""


def test_a_record_of_before_drafters_had_names_is_still_read() -> None:
    outcome = decode(_OF_BEFORE)
    assert (outcome.output_ids, outcome.engine_id) == ((0, 1), "")
    assert outcome.rounds == (Round(3, 1, 1),)
    assert outcome.drafters() == (DrafterId("feature", 3),)


def test_rounds_say_who_proposed() -> None:
    rounds = (Round(3, 2, 1, "feature"), Round(0, 0, 0), Round(1, 4, 4, "lookup"))
    outcome = decode(encode(msgspec.structs.replace(sample_outcome(), rounds=rounds, engine_id="left")))
    assert outcome.drafters() == (DrafterId("feature", 3), None, DrafterId("lookup", 1))
    assert outcome.engine_id == "left"


@given(outcomes(), st.data())
def test_a_torn_outcome_is_refused(outcome: Outcome, data: st.DataObject) -> None:
    encoded = encode(outcome)
    with pytest.raises(OutcomeFormatError):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(st.binary(max_size=64))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(OutcomeFormatError):
        decode(data)


def test_another_schema_version_is_named() -> None:
    newer = msgspec.msgpack.encode({"schema_version": SCHEMA_VERSION + 1, "request_id": 3})
    with pytest.raises(OutcomeFormatError, match=f"schema version {SCHEMA_VERSION + 1}.*reads {SCHEMA_VERSION}"):
        decode(newer)


@pytest.mark.parametrize("field", ["output_kinds", "top_ids", "top_logprobs", "hidden"])
def test_an_array_of_the_wrong_size_is_named(field: str) -> None:
    outcome = sample_outcome()
    broken = msgspec.structs.replace(outcome, **{field: getattr(outcome, field)[:-1]})
    with pytest.raises(OutcomeFormatError, match=field):
        decode(encode(broken))


def test_the_reason_holds_no_content() -> None:
    outcome = msgspec.structs.replace(sample_outcome(), request_id="secret-id", top_ids=b"")
    with pytest.raises(OutcomeFormatError) as refusal:
        decode(encode(outcome))
    assert "secret" not in str(refusal.value)


def test_top_k_arrays_come_back_as_they_were_packed() -> None:
    ids_OK = torch.tensor([[3, 1], [70_000, 2]])
    logprobs_OK = torch.tensor([[-0.5, -2.0], [-0.25, float("-inf")]])
    top_ids, top_logprobs, top_k = pack_top_k(ids_OK, logprobs_OK)
    outcome = msgspec.structs.replace(
        sample_outcome(outputs=2), top_k=top_k, top_ids=top_ids, top_logprobs=top_logprobs
    )
    ids, logprobs = top_k_arrays(outcome)
    assert ids.dtype == np.int32
    assert ids.tolist() == ids_OK.tolist()
    assert logprobs.dtype == np.float16
    assert logprobs.tolist() == [[-0.5, -2.0], [-0.25, LOWEST_LOGPROB]]
    assert pack_top_k(ids, logprobs) == (top_ids, top_logprobs, top_k)


def test_top_k_arrays_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[O, K\]"):
        pack_top_k(torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2, 3))


def test_hidden_states_come_back_as_they_were_packed() -> None:
    hidden_NH = torch.randn(5, 8).bfloat16()
    outcome = msgspec.structs.replace(sample_outcome(outputs=4, hidden_size=8), hidden=pack_hidden(hidden_NH))
    restored = hidden_states(outcome)
    assert restored is not None
    assert restored.dtype == torch.bfloat16
    assert torch.equal(restored, hidden_NH)


def test_no_hidden_states_are_none() -> None:
    outcome = msgspec.structs.replace(sample_outcome(), hidden_size=0, hidden=pack_hidden(torch.empty(0, 0)))
    assert hidden_states(decode(encode(outcome))) is None
