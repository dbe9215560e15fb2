"""Replays an answer: a drafter proposes, and the recorded answer determines what is accepted, without the target.

Greedy decoding is lossless, so the answer does not depend on the proposals, and in every round the target's hidden
states of all earlier positions are the recorded ones. `check.py` compares live runs with this.

Shapes: L positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Protocol

import msgspec
import torch

from benchmarks.adaptation.scores import Score
from osd.config.drafter import SpeculationConfig
from osd.config.settings import Config
from osd.config.versions import SwapConfig
from osd.drafters.suffix.lookup import SuffixLookup
from osd.drafters.suffix.pool import AnswerPool
from osd.ports.drafter import Drafter
from osd.records.drafter_id import DrafterId
from osd.records.outcome import ACCEPTED, BONUS, RECOVERED, Outcome, Round
from osd.records.outcome_arrays import hidden_states
from osd.records.proposal import NO_OFFER, DraftBatch, RowText
from osd.records.query import SamplingParams
from osd.speculation.arm import Arm, Choice
from osd.speculation.budget import RowBudget
from osd.speculation.cost import ArmCosts, CostCurve
from osd.speculation.depth_acceptance import AcceptanceModel
from osd.speculation.length import GoodputPolicy
from osd.speculation.lookup_arm import LookupArm
from osd.speculation.watch import SwapWatch

_GREEDY = SamplingParams(temperature=0.0)
_CONTEXT_TOKENS = 8192
"""Where none is configured."""


class Proposer(Protocol):
    """Proposes an answer's next tokens, one query at a time."""

    @property
    def id(self) -> DrafterId:
        """The drafter that made the latest proposal, recorded with its round."""
        ...

    def begin(self, outcome: Outcome) -> None:
        """Begin a query; of its answer, only the known tokens may be read."""
        ...

    def propose(self, num_known: int, max_tokens: int) -> list[int]:
        """Propose tokens to follow the query's first `num_known` tokens, prompt included."""
        ...


def replay(proposer: Proposer, outcome: Outcome, *, length: int, max_tokens: int) -> list[Round]:
    """The rounds in which an engine would decode an answer.

    Args:
        proposer: its tokens must be certain: greedy for a greedy answer; for a sampled one, from a distribution with
            one token, which is accepted exactly if it is the emitted one.
        outcome: the recorded answer.
        length: speculation length.
        max_tokens: the longest answer that was asked for.
    """
    rounds = []
    answer, num_done = outcome.output_ids, 1  # the prefill yields the first token
    proposer.begin(outcome)
    while num_done < len(answer):
        limit = min(length, max_tokens - num_done - 1)
        proposed = proposer.propose(len(outcome.prompt_ids) + num_done, limit) if limit else []
        num_accepted = num_common(proposed, answer[num_done:])
        name, version = proposer.id if proposed else ("", 0)
        rounds.append(Round(version, len(proposed), num_accepted, name))
        num_done += num_accepted + 1
    return rounds


def as_decoded(outcome: Outcome, rounds: Sequence[Round], kind: str) -> Outcome:
    """The outcome that an engine would have recorded, had it decoded the answer in these rounds.

    Args:
        outcome: the recorded answer.
        rounds: of its replay; none for a sampled answer, whose rounds are only known on average.
        kind: of the learned drafter.
    """
    kinds = bytes([BONUS])  # the token from prefill
    for one in rounds:
        kinds += bytes([ACCEPTED] * one.accepted + [RECOVERED if one.accepted < one.proposed else BONUS])
    return msgspec.structs.replace(
        outcome,
        rounds=tuple(rounds),
        output_kinds=kinds[: len(outcome.output_ids)] if rounds else outcome.output_kinds,
        drafter_kind=kind,
    )


def score(rounds: Sequence[Round], num_output_tokens: int) -> Score:
    """The score of a query's rounds."""
    accepted = sum(one.accepted for one in rounds)
    committed, last = max(num_output_tokens - 1, 0), len(rounds) - 1
    # The end of the answer, rather than a rejection, may have cut the last round's proposal.
    cut = bool(rounds) and accepted + len(rounds) > committed
    rejected = sum(one.accepted < one.proposed and not (cut and number == last) for number, one in enumerate(rounds))
    return Score(
        rounds=len(rounds),
        committed=committed,
        drafted=sum(one.proposed > 0 for one in rounds),
        first_accepted=sum(one.accepted > 0 for one in rounds),
        accepted=accepted,
        examined=accepted + rejected,
    )


def context_tokens(config: Config) -> int:
    """The longest prompt and answer that can be replayed."""
    return config.target.max_context_tokens or _CONTEXT_TOKENS


class LearnedProposer:
    """A drafter as it is served, of any kind, with one row.

    Args:
        drafter: has its own cache; it may skip rounds, and then catches up.
        hidden_size: H.
        max_context_tokens: longest prompt and answer.
        dtype: of the target's hidden states.
    """

    def __init__(self, drafter: Drafter, hidden_size: int, max_context_tokens: int, dtype: torch.dtype) -> None:
        self.drafter = drafter
        self._tokens_1L = torch.zeros(1, max_context_tokens, dtype=torch.long)
        self._hidden_1LH = torch.zeros(1, max_context_tokens, hidden_size, dtype=dtype)
        self._generator = Random(0)

    @property
    def id(self) -> DrafterId:
        """Its name, and the version in use."""
        return self.drafter.id

    def begin(self, outcome: Outcome) -> None:
        """See `Proposer`."""
        ids = (*outcome.prompt_ids, *outcome.output_ids)
        self._tokens_1L[0, : len(ids)] = torch.tensor(ids)
        hidden_NH = hidden_states(outcome)
        if hidden_NH is not None:
            first = outcome.hidden_start
            self._hidden_1LH[0, first : first + len(hidden_NH)] = hidden_NH
        self.drafter.reset_row(0)

    def propose(self, num_known: int, max_tokens: int) -> list[int]:
        """See `Proposer`."""
        batch = DraftBatch(
            tokens_SL=self._tokens_1L,
            hidden_SLH=self._hidden_1LH,
            num_tokens=[num_known],
            lengths=[max_tokens],
            params=[_GREEDY],
            generators=[self._generator],
        )
        ids: list[int] = self.drafter.propose(batch).of_length(max_tokens)[0].tolist()
        return ids


class SuffixProposer:
    """Proposes what followed the same tokens before, in the query's own text or in the pool's answers.

    Args:
        pool: recent answers.
    """

    def __init__(self, pool: AnswerPool) -> None:
        self.lookup = SuffixLookup(pool, 1)
        self.offer = NO_OFFER
        """The latest."""

    @property
    def id(self) -> DrafterId:
        """The lookup's."""
        return self.lookup.id

    def begin(self, outcome: Outcome) -> None:
        """See `Proposer`."""
        self._outcome = outcome
        self.lookup.reset_row(0)

    def propose(self, num_known: int, max_tokens: int) -> list[int]:
        """See `Proposer`."""
        prompt_ids, output_ids = self._outcome.prompt_ids, self._outcome.output_ids
        text = RowText(self._outcome.domain, prompt_ids, output_ids[: num_known - len(prompt_ids)])
        [self.offer] = self.lookup.offers([text], max_tokens)
        return list(self.offer.token_ids)


class EitherProposer:
    """Uses the suffix proposal or the learned drafter's by the served policy, as if every round took the same time.

    Args:
        suffix: is asked in every round.
        learned: proposes in the rounds for which it is chosen; others do not cost a pass.
        drafter: its drafter.
        length: most tokens proposed.
        gate: the figures of its version's gate, from which the policy starts.
    """

    _outcome: Outcome
    _row: RowBudget

    def __init__(
        self,
        suffix: SuffixProposer,
        learned: Proposer,
        drafter: Drafter,
        length: int,
        gate: Mapping[str, float],
    ) -> None:
        self._suffix, self._learned, self._drafter = suffix, learned, drafter
        free, width = CostCurve({(1, 1): 1e-6, (1, 2): 1e-6}), CostCurve({(1, 1): 1.0, (1, length + 1): 1.0})
        arm = Arm(drafter, ArmCosts(free, free), AcceptanceModel(length), SwapWatch(SwapConfig().watch_rounds))
        arm.acceptance.reset(dict(gate))
        config = SpeculationConfig(max_length=length)
        self.policy = GoodputPolicy(config, width, [arm], LookupArm(suffix.lookup))
        self._asked: tuple[int, Choice] | None = None

    @property
    def id(self) -> DrafterId:
        """Of whichever proposed last."""
        return self._suffix.id if self._asked and isinstance(self._asked[1].arm, LookupArm) else self._learned.id

    def begin(self, outcome: Outcome) -> None:
        """See `Proposer`."""
        if self._asked is not None:
            self._observe(len(self._outcome.prompt_ids) + len(self._outcome.output_ids))
        self._suffix.begin(outcome)
        self._learned.begin(outcome)
        self._outcome, self._row, self._asked = outcome, RowBudget(), None

    def propose(self, num_known: int, max_tokens: int) -> list[int]:
        """See `Proposer`."""
        if self._asked is not None:
            self._observe(num_known)
        found = self._suffix.propose(num_known, max_tokens)
        self._row.limit, self._row.num_tokens, self._row.offer = max_tokens, num_known, self._suffix.offer
        [choice] = self.policy.choose([self._row])
        self._asked = num_known, choice
        if isinstance(choice.arm, LookupArm):
            return found[: choice.length]
        return self._learned.propose(num_known, choice.length) if choice.length else []

    def _observe(self, num_known: int) -> None:
        """Learn from the last round, which committed what is known since."""
        assert self._asked is not None and self.policy.lookup is not None
        (asked_at, choice), num_prompt = self._asked, len(self._outcome.prompt_ids)
        committed = self._outcome.output_ids[asked_at - num_prompt : num_known - num_prompt]
        lookup = self.policy.lookup
        lookup.observe(self._row.offer, self._row.of(lookup).acceptance, committed)
        accepted = min(max(len(committed) - 1, 0), choice.length)
        self.policy.observe([self._row], [choice], [accepted], draft_ms=1e-6, verify_ms=1.0)


def num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return next(
        (n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )
