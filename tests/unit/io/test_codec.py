"""Outcomes survive their encoding; what is no outcome is refused with a reason."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from osd.io.codec import OutcomeFormatError, decode, encode
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
        rounds=tuple(draw(st.lists(st.builds(Round, _TOKENS, _TOKENS, _TOKENS), max_size=3))),
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
