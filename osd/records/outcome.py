"""The outcome of a finished query: what was proposed, what was accepted, and what the trainer needs to learn from it.

It holds the target's top-K log-probabilities and last hidden states, kept during verification, so that no teacher has
to be run again.
"""

from __future__ import annotations

import msgspec

from osd.records.drafter_id import DrafterId

SCHEMA_VERSION = 1
"""Raised when a field changes its meaning or is removed. An added field has a default that stands for "not recorded".
Records without it can therefore still be read, and readers that do not know a field skip it.
"""

# Values of `Outcome.output_kinds`, one byte per output position.
ACCEPTED = ord("a")
RECOVERED = ord("r")
BONUS = ord("b")  # also for the token from prefill, and for the tokens of plain rounds


class Round(msgspec.Struct, frozen=True, array_like=True):
    """One round of one query."""

    drafter_version: int
    """0 if nothing was proposed."""
    proposed: int
    accepted: int
    drafter_name: str = ""
    """Empty if nothing was proposed, and in records from before drafters had names; see `Outcome.drafters`."""

    @property
    def num_rejected(self) -> int:
        """How many tokens a drafter with weights proposed in vain; 0 if the lookup proposed, which has no versions."""
        return max(self.proposed - self.accepted, 0) if self.drafter_version else 0


class Timings(msgspec.Struct, frozen=True):
    """Where the query's time was spent, in milliseconds."""

    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    total_ms: float = 0.0


class Sampling(msgspec.Struct, frozen=True):
    """The query's sampling parameters."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One query's outcome. Arrays are little-endian bytes with the dtype and shape given beside them.

    Let P = len(prompt_ids), O = len(output_ids). Output position j is absolute position P + j. The target's
    distribution for it, given everything before it, is row j of `top_ids` / `top_logprobs`. Row i of `hidden` is the
    target's last hidden state *at* absolute position `hidden_start + i`, the one from which the target predicted
    position `hidden_start + i + 1`. The last output token was never fed to the target, so hidden states end at
    absolute position P + O - 2.

    Example (two output tokens, K = 2): `Outcome(request_id="r-1", domain="default", target_id="smollm2",
    drafter_kind="feature", created_at_s=1.7e9, prompt_ids=(5, 6), output_ids=(7, 8), output_kinds=b"br",
    rounds=(Round(3, 2, 0),), top_k=2, top_ids=<int32 [2, 2]>, top_logprobs=<float16 [2, 2]>, hidden_size=4,
    hidden_start=0, hidden=<bfloat16 [3, 4]>, finish_reason="stop")`
    """

    schema_version: int = SCHEMA_VERSION
    request_id: str
    domain: str
    target_id: str
    drafter_kind: str
    created_at_s: float
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    output_kinds: bytes
    """[O]: ACCEPTED, RECOVERED or BONUS."""
    rounds: tuple[Round, ...]
    top_k: int
    top_ids: bytes
    """int32 [O, top_k]: the target's most likely tokens, best first."""
    top_logprobs: bytes
    """float16 [O, top_k]: their log-probabilities at temperature 1, before any filter or penalty."""
    hidden_size: int = 0
    hidden_start: int = 0
    hidden: bytes = b""
    """bfloat16 [P + O - 1 - hidden_start, hidden_size]; empty if the drafter needs no hidden states."""
    sampling: Sampling = Sampling()
    timings: Timings = Timings()
    finish_reason: str = "stop"
    rejected_top_k: int = 0
    """0: the next three fields were not recorded and are empty."""
    rejected_ids: bytes = b""
    """int32 [R]: the drafted tokens of each round from the first rejected one on, round after round; how many of each
    round, see `num_rejected`."""
    rejected_top_ids: bytes = b""
    """int32 [R, rejected_top_k]: the target's most likely tokens after each of them, best first; it read the rejected
    tokens as if they had been accepted."""
    rejected_top_logprobs: bytes = b""
    """float16 [R, rejected_top_k]: as `top_logprobs`. NaN where the target's pass overflowed."""
    engine_id: str = ""
    """The engine that answered, where several write to one stream; empty in records from before engines had ids."""
    domain_from: str = ""
    """See `osd.records.query.DomainFrom`; empty in records from before there was a router."""

    def drafters(self) -> tuple[DrafterId | None, ...]:
        """The drafter that proposed in each round; None for plain rounds."""
        return tuple(
            DrafterId(one.drafter_name or self.drafter_kind, one.drafter_version) if one.proposed else None
            for one in self.rounds
        )

    def num_rejected(self) -> list[int]:
        """How many elements of `rejected_ids` each round has: proposed - accepted, or 0.

        0 for rounds without a learned drafter, for all rounds if `rejected_top_k` is 0, and for a last round whose
        tokens were cut off by the end of the answer, so that nothing was committed at the rejected position.
        """
        numbers = [one.num_rejected if self.rejected_top_k else 0 for one in self.rounds]
        if 1 + sum(one.accepted + 1 for one in self.rounds) > len(self.output_ids) and numbers:
            numbers[-1] = 0
        return numbers
