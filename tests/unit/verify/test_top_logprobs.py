"""Log-probabilities at committed positions, taken for all rows at once."""

from __future__ import annotations

import pytest
import torch

from osd.verify.top_logprobs import top_logprobs
from tests.kit.backends import fastest

_of = fastest().logits
_VOCAB = 16


def test_they_are_taken_before_temperature_and_filters() -> None:
    logits_BQV = torch.randn(3, 2, _VOCAB, generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    tokens = [[1, 0], [], [7]]
    tops = list(top_logprobs(_of(logits_BQV), tokens, 5))
    plain_BQV = logits_BQV.float().log_softmax(dim=-1)
    for row, (top, committed) in enumerate(zip(tops, tokens, strict=True)):
        plain_NV = plain_BQV[row, : len(committed)]
        chosen = [float(plain_NV[n, token]) for n, token in enumerate(committed)]
        chosen_N, ids_NK, logprobs_NK = top.read()
        assert chosen_N.tolist() == pytest.approx(chosen, abs=1e-5)
        assert ids_NK.dtype == torch.int32 and ids_NK.shape == (len(committed), 5)
        torch.testing.assert_close(logprobs_NK, plain_NV.topk(5).values)
        torch.testing.assert_close(plain_NV.gather(1, ids_NK.long()), logprobs_NK)


def test_there_are_no_more_than_tokens() -> None:
    assert top_logprobs(_of(torch.zeros(1, 1, 3)), [[0]], 20)[0].read()[1].shape == (1, 3)


def test_an_answer_that_ends_early_keeps_only_its_own() -> None:
    logits_BQV = torch.randn(1, 3, _VOCAB, generator=torch.Generator().manual_seed(5))
    [whole] = top_logprobs(_of(logits_BQV), [[4, 5, 6]], 8)
    cut = whole.cut(2, 3)
    chosen_N, ids_NK, logprobs_NK = whole.read()
    expected = chosen_N[:2], ids_NK[:2, :3], logprobs_NK[:2, :3]
    assert all(torch.equal(*pair) for pair in zip(cut.read(), expected, strict=True))
    [first, second] = cut.for_client([4, 5])
    assert (first.token_id, second.token_id) == (4, 5) and len(first.top) == 3
