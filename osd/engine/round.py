"""One round over all decoding rows: propose, verify, and update the speculation policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from osd.engine.overflow import read_again
from osd.engine.sequence import Rejected, Sequence
from osd.machine.transfer import in_columns, prepended
from osd.models.target import Target
from osd.ports.constraint import RowConstraint
from osd.records.outcome import Round
from osd.records.proposal import NO_OFFER, DraftBatch, Offer, Proposal, RowText, merge
from osd.records.query import SamplingParams
from osd.records.rules import AcceptRule
from osd.speculation.arm import PLAIN, Arm, Choice
from osd.speculation.length import GoodputPolicy
from osd.speculation.lookup_arm import LookupArm
from osd.verify.constrain import cut_to_constraints, drawn_again, num_allowed
from osd.verify.logits import Logits
from osd.verify.top_logprobs import TopLogprobs, wanted_top_logprobs
from osd.verify.verdict import verify_rows

_PLAIN_ROUND = Round(0, 0, 0)
_DRAFT_TEMPERATURE = 0.1
"""Of greedy rows with a constraint: low, but so that distributions keep their first few tokens in float32."""
_REACH_OF_EXPECTED = 0.95
"""Estimated probability that a token which a constraint expects is accepted, if those before it are."""


class Drafted(NamedTuple):
    """The proposal of a round."""

    proposal: Proposal | None
    """None if nothing was proposed."""
    choices: list[Choice]
    """For each row, the arm and the number of tokens that it proposed, which may be fewer than it was asked for. Of a
    constrained row, tokens may have been left out of `proposal` since.
    """

    def round_of(self, row: int, num_accepted: int) -> Round:
        """A row's round, as recorded in its outcome."""
        arm = self.choices[row].arm
        length = 0 if self.proposal is None else self.proposal.lengths[row]
        if arm is None or not length:
            return _PLAIN_ROUND
        name, version = arm.drafter.id
        return Round(version, length, num_accepted, name)


class Verified(NamedTuple):
    """The verdicts of a round."""

    committed: list[list[int]]
    """The tokens that each row commits; empty if its logits are not finite, even when it is run again alone."""
    logits: Logits


def propose(
    target: Target, rows: list[Sequence], choices: list[Choice], on_error: Callable[[Arm, Exception], None]
) -> Drafted:
    """Let every chosen arm propose for its rows.

    Args:
        target: holds the rows' tokens and hidden states.
        rows: the decoding rows.
        choices: the arm and the speculation length for each row.
        on_error: called for a drafter that raised; its rows decode plainly.
    """
    proposals, made = [], [PLAIN] * len(rows)
    if (found := looked_up(rows, choices, target.tokens_SL.device)) is not None:
        proposals.append(found)
        made = [choice if isinstance(choice.arm, LookupArm) else PLAIN for choice in choices]
    for arm in dict.fromkeys(choice.arm for choice in choices):
        if not isinstance(arm, Arm):
            continue
        lengths = [choice.length if choice.arm is arm else 0 for choice in choices]
        try:
            proposal = arm.drafter.propose(_batch(target, rows, lengths))
        except Exception as error:
            on_error(arm, error)
            continue
        if any(proposal.lengths):
            proposals.append(proposal)
        for row, length in enumerate(proposal.lengths):
            if length:
                made[row] = Choice(arm, length)
    merged = merge(proposals, len(rows)) if proposals else None
    constraints = [sequence.constraint for sequence in rows]
    if merged is not None and any(constraints):
        is_greedy_B = [sequence.request.params.is_greedy for sequence in rows]
        merged = drawn_again(merged, constraints, is_greedy_B, [sequence.generator for sequence in rows])
        merged = cut_to_constraints(merged, constraints, is_greedy_B)
    return Drafted(merged, made)


def look_up(lookup: LookupArm, rows: list[Sequence], max_length: int, plain_ms: float) -> None:
    """Ask the lookup what it offers to each row, up to what the row's constraint forbids; nothing if it is not due.

    Args:
        lookup: the lookup.
        rows: the decoding rows, whose budgets are set.
        max_length: most tokens of an offer.
        plain_ms: expected duration of a plain round over these rows.
    """
    if not lookup.turns.is_due(len(rows), plain_ms):
        for sequence in rows:
            sequence.budget.offer = NO_OFFER
        return
    texts = [RowText(one.request.domain, one.request.prompt_ids, one.output_ids) for one in rows]
    longest = min(max(sequence.budget.limit for sequence in rows), max_length)
    for sequence, offer in zip(rows, lookup.drafter.offers(texts, longest), strict=True):
        constraint = sequence.constraint
        sequence.budget.offer = offer if constraint is None else _offer_within(constraint, offer, longest)


def _offer_within(constraint: RowConstraint, offer: Offer, max_tokens: int) -> Offer:
    """What a lookup offers up to what a constraint forbids, or instead the only text that the constraint allows."""
    expected = tuple(constraint.expected())[:max_tokens]
    if offer.num_equal(expected) < len(expected):
        offer = Offer(expected, tuple(_REACH_OF_EXPECTED**depth for depth in range(1, len(expected) + 1)))
    return offer.first(num_allowed(constraint, offer.token_ids))


def looked_up(rows: list[Sequence], choices: list[Choice], device: torch.device) -> Proposal | None:
    """The proposal of the rows for which the lookup was chosen; None if there are none."""
    lengths = [choice.length if isinstance(choice.arm, LookupArm) else 0 for choice in choices]
    if not (width := max(lengths)):
        return None
    ids = [sequence.budget.offer.token_ids[:length] for sequence, length in zip(rows, lengths, strict=True)]
    ids_BK = torch.tensor([[*own, *[0] * (width - len(own))] for own in ids], device=device)
    return Proposal(ids_BK, lengths, None, next(c.arm.drafter.id for c in choices if isinstance(c.arm, LookupArm)))


def _batch(target: Target, rows: list[Sequence], lengths: list[int]) -> DraftBatch:
    """The rows up to the last one that should propose."""
    drafted = rows[: max(row for row, length in enumerate(lengths) if length) + 1]
    return DraftBatch(
        tokens_SL=target.tokens_SL,
        hidden_SLH=target.hidden_SLH,
        num_tokens=[sequence.num_tokens for sequence in drafted],
        lengths=lengths[: len(drafted)],
        params=[_drafted_by(sequence) for sequence in drafted],
        generators=[sequence.generator for sequence in drafted],
    )


def _drafted_by(sequence: Sequence) -> SamplingParams:
    """How a row's proposal is drawn.

    Of a greedy row with a constraint it is drawn, too, at a low temperature: there is then a distribution in which the
    most likely allowed token can be found, should the constraint forbid the most likely one.
    """
    params = sequence.request.params
    if sequence.constraint is None or not params.is_greedy:
        return params
    return replace(params, temperature=_DRAFT_TEMPERATURE, top_p=1.0, top_k=0, min_p=0.0)


def verify(target: Target, rows: list[Sequence], proposal: Proposal | None, rule: AcceptRule) -> Verified:
    """Run one target pass over every row's last token and proposal, and verify the proposals."""
    starts = [sequence.num_tokens - 1 for sequence in rows]
    last = [sequence.output_ids[-1] for sequence in rows]
    proposed_BK = None if proposal is None else proposal.of_length(max(proposal.lengths))
    logits = target.read(0, prepended(last, proposed_BK), starts).logits
    assert logits is not None
    committed = verify_rows(logits, rows, proposal, rule=rule)
    if not all(committed):
        read_again(target, rows, committed, logits)
    return Verified(committed, logits)


def rank(
    rows: list[Sequence], drafted: Drafted, verified: Verified
) -> list[tuple[TopLogprobs | None, Rejected | None]]:
    """The target's log-probabilities for outcomes and clients, from one pass over the round's logits.

    Returns:
        For each row, those at committed positions, and what it drafted from the first rejected token on; None for what
        neither its outcome nor its client wants.
    """
    rounds = [drafted.round_of(row, max(len(tokens) - 1, 0)) for row, tokens in enumerate(verified.committed)]
    num_rejected = [
        round_.num_rejected if sequence.rejected_top_k and tokens else 0
        for sequence, round_, tokens in zip(rows, rounds, verified.committed, strict=True)
    ]
    wanted = [sequence.num_logprobs for sequence in rows]
    named = [sequence.request.params.logprob_token_ids for sequence in rows]
    tops = wanted_top_logprobs(verified.logits, verified.committed, wanted, num_rejected, named)
    if drafted.proposal is None or not any(num_rejected):
        return [(top, None) for top in tops]
    proposed = in_columns([drafted.proposal.token_ids_BK])
    ranked: list[tuple[TopLogprobs | None, Rejected | None]] = []
    for sequence, top, own, round_, num in zip(rows, tops, proposed, rounds, num_rejected, strict=True):
        rejected = None
        if top is not None and num:
            rejected = Rejected(own[round_.accepted : round_.proposed], top.following(num, sequence.rejected_top_k))
        ranked.append((top, rejected))
    return ranked


def learn(
    policy: GoodputPolicy,
    rows: list[Sequence],
    drafted: Drafted,
    committed: list[list[int]],
    times_ms: tuple[float, float],
) -> list[int]:
    """Update the policy and the watches with a round's results.

    Args:
        policy: the policy with its arms.
        rows: the decoding rows.
        drafted: what was proposed.
        committed: the tokens that each row commits.
        times_ms: duration of drafting and of verifying.

    Returns:
        The number of accepted tokens of each row.
    """
    accepted = [max(len(tokens) - 1, 0) for tokens in committed]
    budgets, (draft_ms, verify_ms) = [sequence.budget for sequence in rows], times_ms
    if policy.lookup is not None and not policy.lookup.is_broken:
        for budget, tokens in zip(budgets, committed, strict=True):
            policy.lookup.observe(budget.offer, budget.of(policy.lookup).acceptance, tokens)
        policy.lookup.turns.over(is_used=any(isinstance(choice.arm, LookupArm) for choice in drafted.choices))
    num_verified = 0 if drafted.proposal is None else max(drafted.proposal.lengths)
    policy.observe(budgets, drafted.choices, accepted, num_verified, draft_ms=draft_ms, verify_ms=verify_ms)
    for sequence, choice, num_accepted in zip(rows, drafted.choices, accepted, strict=True):
        if isinstance(choice.arm, Arm):
            choice.arm.observe(sequence.request.request_id, sequence.request.domain, num_accepted > 0)
    return accepted
