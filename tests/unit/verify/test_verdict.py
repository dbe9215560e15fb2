"""Verification of ragged rows: each row by its own parameters, proposal and random stream."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import torch

from osd.machine.arrays import tensor
from osd.ports.constraint import RowConstraint
from osd.records.drafter_id import DrafterId
from osd.records.proposal import Proposal
from osd.records.query import Request, SamplingParams
from osd.verify.adjust import adjust
from osd.verify.shaping import BatchShaping, RowShaping, shape_probs, uniforms
from osd.verify.token_rule import match_greedy, reject_tokenwise
from osd.verify.verdict import verify_rows
from tests.kit.backends import fastest

_of = fastest().logits
_VOCAB = 8


class _Row(NamedTuple):
    """All that verification asks of a query."""

    request: Request
    shaping: RowShaping
    generator: Random
    output_ids: list[int]
    end_ids: frozenset[int] = frozenset()
    constraint: RowConstraint | None = None


def _row(params: SamplingParams, output: list[int], seed: int = 1) -> _Row:
    request = Request(request_id="r", prompt_ids=(1,), params=params)
    return _Row(request, RowShaping.of(params), Random(seed), list(output))


def _logits(best: list[list[int]]) -> torch.Tensor:
    """Row b's most likely token at position q is best[b][q]."""
    logits = torch.randn(len(best), len(best[0]), _VOCAB, generator=torch.Generator().manual_seed(3))
    for row, tokens in enumerate(best):
        for position, token in enumerate(tokens):
            logits[row, position, token] = 9.0
    return logits


def test_greedy_rows_of_different_lengths() -> None:
    greedy = SamplingParams(temperature=0.0)
    proposal = Proposal(
        token_ids_BK=torch.tensor([[1, 2, 3], [4, 5, 6], [7, 7, 7], [1, 1, 1]]),
        lengths=[3, 2, 0, 3],
        draft_probs_BKV=None,
        drafter=DrafterId("feature", 1),
    )
    logits = _logits([[1, 2, 3, 4], [4, 5, 1, 2], [6, 1, 1, 1], [1, 0, 1, 1]])
    verdicts = verify_rows(_of(logits), [_row(greedy, [0]) for _ in range(4)], proposal)
    # All kept and a bonus; all of two kept, the padding never looked at; nothing proposed; one kept, one recovered.
    assert verdicts == [[1, 2, 3, 4], [4, 5, 1], [6], [1, 0]]


def test_a_round_without_proposals() -> None:
    rows = [_row(SamplingParams(temperature=0.0), [0]), _row(SamplingParams(), [0])]
    verdicts = verify_rows(_of(_logits([[3], [5]])), rows, None)
    assert [len(tokens) for tokens in verdicts] == [1, 1]
    assert verdicts[0] == [3]


def test_greedy_rows_with_penalties_see_proposed_tokens() -> None:
    params = SamplingParams(temperature=0.0, presence_penalty=2.0)
    logits = torch.zeros(1, 3, _VOCAB)
    logits[0, :, 4], logits[0, :, 6] = 3.0, 2.5
    proposal = Proposal(
        token_ids_BK=torch.tensor([[4, 6]]), lengths=[2], draft_probs_BKV=None, drafter=DrafterId("feature", 1)
    )
    # 4 is best until it was said, then 6; both said, 4 leads again.
    assert verify_rows(_of(logits), [_row(params, [0])], proposal) == [[4, 6, 4]]
    assert verify_rows(_of(logits), [_row(params, [4])], proposal) == [[6]]


def test_sampled_rows_use_their_own_stream_and_shape() -> None:
    params = [
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.3, top_k=4, frequency_penalty=0.5),
        SamplingParams(),
    ]
    rows = [_row(one, [2, 3], seed=10 + number) for number, one in enumerate(params)]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 4, _VOCAB, generator=generator)
    draft_probs = torch.softmax(torch.randn(4, 3, _VOCAB, generator=generator), dim=-1)
    proposal = Proposal(
        token_ids_BK=torch.randint(0, _VOCAB, (4, 3), generator=generator),
        lengths=[3, 1, 2, 0],
        draft_probs_BKV=draft_probs,
        drafter=DrafterId("feature", 1),
    )
    verdicts = verify_rows(_of(logits), rows, proposal)
    for row in (0, 2, 3):
        length = proposal.lengths[row]
        ids = tensor(proposal.token_ids_BK)[row, :length]
        penalised = adjust(logits[row, : length + 1], rows[row], ids)
        uniform = torch.tensor(uniforms(Random(10 + row), length + 1, length + 1))
        target = shape_probs(penalised[None], BatchShaping.of([RowShaping.of(params[row])], _VOCAB, logits.device))
        num_accepted_B, next_B = reject_tokenwise(
            target, draft_probs[row : row + 1, :length], ids[None], torch.tensor([length]), uniform[None]
        )
        assert verdicts[row] == [*ids[: int(num_accepted_B)].tolist(), int(next_B)]
    assert verdicts[1] == match_greedy(logits[1].argmax(dim=-1).tolist(), proposal.token_ids_BK[1, :1].tolist())


def test_rows_without_penalties_keep_their_logits_beside_one_that_has_some() -> None:
    plain, penalised = SamplingParams(temperature=0.0), SamplingParams(temperature=0.0, presence_penalty=2.0)
    logits = torch.zeros(2, 1, _VOCAB)
    logits[:, 0, 4], logits[:, 0, 6] = 3.0, 2.5
    assert verify_rows(_of(logits), [_row(plain, [4]), _row(penalised, [4])], None) == [[4], [6]]


def test_a_sampled_row_that_proposes_less_than_a_greedy_one() -> None:
    rows = [_row(SamplingParams(temperature=0.0), [0]), _row(SamplingParams(), [0]), _row(SamplingParams(), [0])]
    sure = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 0, 0]]), _VOCAB).float()
    proposal = Proposal(
        token_ids_BK=torch.tensor([[1, 2, 3], [4, 5, 6], [7, 0, 0]]),
        lengths=[3, 1, 0],
        draft_probs_BKV=sure,
        drafter=DrafterId("feature", 1),
    )
    logits = 40.0 * torch.nn.functional.one_hot(torch.tensor([[1, 2, 3, 4], [4, 5, 6, 7], [7, 0, 0, 0]]), _VOCAB)
    assert verify_rows(_of(logits.float()), rows, proposal) == [[1, 2, 3, 4], [4, 5], [7]]


def test_a_proposal_of_the_first_rows_only() -> None:
    drafter, probs_BKV = DrafterId("feature", 3), torch.full((1, 2, _VOCAB), 0.125)
    proposal = Proposal(torch.tensor([[1, 2]]), [2], probs_BKV, drafter).padded(3)
    assert proposal.lengths == [2, 0, 0] and proposal.drafter == drafter
    assert proposal.draft_probs_BKV is not None and proposal.draft_probs_BKV.shape == (3, 2, _VOCAB)
    greedy = SamplingParams(temperature=0.0)
    verdicts = verify_rows(
        _of(_logits([[1, 2, 3], [4, 0, 0], [5, 0, 0]])), [_row(greedy, [0]) for _ in range(3)], proposal
    )
    assert verdicts == [[1, 2, 3], [4], [5]]


def test_a_rows_verdict_does_not_depend_on_its_company() -> None:
    """bfloat16 logits, many of them equal where top-p cuts; a neighbour with penalties needs float32."""
    own, neighbours = SamplingParams(top_p=0.9), [SamplingParams(presence_penalty=0.5), SamplingParams(temperature=0.0)]
    generator = torch.Generator().manual_seed(5)
    for seed in range(20):
        logits = torch.randn(3, 3, 20_000, generator=generator).bfloat16()
        probs = torch.softmax(torch.randn(3, 2, 20_000, generator=generator), dim=-1)
        ids = torch.randint(0, 20_000, (3, 2), generator=generator)
        committed = []
        for count in (1, 3):
            rows = [_row(own, [2], seed), *[_row(params, [2], seed + 1) for params in neighbours]][:count]
            proposal = Proposal(ids[:count], [2] * count, probs[:count], None)
            committed.append(verify_rows(_of(logits[:count]), rows, proposal)[0])
        assert committed[0] == committed[1]
