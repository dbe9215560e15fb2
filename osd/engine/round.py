"""One round of all decoding rows: propose, verify, and what is learnt from the verdicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from osd.engine.overflow import read_again
from osd.engine.sequence import Sequence
from osd.machine.transfer import prepended
from osd.models.target import Target
from osd.records.outcome import Round
from osd.records.proposal import DraftBatch, Proposal, merge
from osd.records.rules import AcceptRule
from osd.speculation.arm import PLAIN, Arm, Choice
from osd.speculation.length import GoodputPolicy
from osd.verify.logits import Logits
from osd.verify.verdict import verify_rows

_PLAIN_ROUND = Round(0, 0, 0)


class Drafted(NamedTuple):
    """What was proposed."""

    proposal: Proposal | None
    """None where nothing was."""
    choices: list[Choice]
    """By row, who proposed, and how many tokens: a drafter may offer fewer than it was asked for."""

    def round_of(self, row: int, num_accepted: int) -> Round:
        """A row's part in the round, as its outcome keeps it."""
        arm, length = self.choices[row]
        if arm is None:
            return _PLAIN_ROUND
        name, version = arm.drafter.id
        return Round(version, length, num_accepted, name)


class Verified(NamedTuple):
    """The target's verdicts."""

    committed: list[list[int]]
    """By row, the tokens that it may keep; none where its logits are not finite, also when it is read again alone."""
    logits: Logits


def propose(
    target: Target, rows: list[Sequence], choices: list[Choice], on_error: Callable[[Arm, Exception], None]
) -> Drafted:
    """Let every arm that was chosen propose for its rows.

    Args:
        target: has the rows' tokens and hidden states.
        rows: the decoding rows.
        choices: who is to propose for each, and how many tokens.
        on_error: told of a drafter that raised; its rows decode plainly.
    """
    proposals, made = [], [PLAIN] * len(rows)
    for arm in dict.fromkeys(choice.arm for choice in choices):
        if arm is None:
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
    return Drafted(merge(proposals, len(rows)) if proposals else None, made)


def _batch(target: Target, rows: list[Sequence], lengths: list[int]) -> DraftBatch:
    """The rows up to the last one that is to propose."""
    drafted = rows[: max(row for row, length in enumerate(lengths) if length) + 1]
    return DraftBatch(
        tokens_SL=target.tokens_SL,
        hidden_SLH=target.hidden_SLH,
        num_tokens=[sequence.num_tokens for sequence in drafted],
        lengths=lengths[: len(drafted)],
        params=[sequence.request.params for sequence in drafted],
        generators=[sequence.generator for sequence in drafted],
    )


def verify(target: Target, rows: list[Sequence], proposal: Proposal | None, rule: AcceptRule) -> Verified:
    """One target pass over every row's last token and its proposal, and the verdicts on them."""
    starts = [sequence.num_tokens - 1 for sequence in rows]
    last = [sequence.output_ids[-1] for sequence in rows]
    proposed_BK = None if proposal is None else proposal.of_length(max(proposal.lengths))
    logits = target.read(0, prepended(last, proposed_BK), starts).logits
    assert logits is not None
    committed = verify_rows(logits, rows, proposal, rule=rule)
    if not all(committed):
        read_again(target, rows, committed, logits)
    return Verified(committed, logits)


def learn(
    policy: GoodputPolicy,
    rows: list[Sequence],
    choices: list[Choice],
    accepted: list[int],
    times_ms: tuple[float, float],
) -> None:
    """Tell the policy and the watches how a round went.

    Args:
        policy: with its arms.
        rows: the decoding rows.
        choices: who proposed for each, and how many tokens.
        accepted: how many of them were accepted.
        times_ms: what drafting and verifying took.
    """
    budgets, (draft_ms, verify_ms) = [sequence.budget for sequence in rows], times_ms
    policy.observe(budgets, choices, accepted, draft_ms=draft_ms, verify_ms=verify_ms)
    for sequence, choice, num_accepted in zip(rows, choices, accepted, strict=True):
        if choice.arm is not None:
            choice.arm.watch.observe(sequence.request.request_id, num_accepted > 0)
    for arm in dict.fromkeys(choice.arm for choice in choices):
        if arm is not None:
            arm.watch.verdict()
