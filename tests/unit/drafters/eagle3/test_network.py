"""The network and its rounds against the plain implementation of EAGLE-3 (`tests.kit.eagle3_plain`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from osd.drafters.eagle3.layout import TargetShape, parse_config
from osd.drafters.eagle3.reading import Head, head_of
from osd.drafters.feature import FeatureDrafter
from osd.kernels.reference.drafting.eagle3_net import Eagle3Config
from osd.records.errors import WeightsRefusedError
from osd.records.proposal import DraftBatch
from osd.records.query import SamplingParams
from osd.records.shared_rows import SharedRows
from tests.kit.backends import TORCH
from tests.kit.eagle3_heads import HIDDEN_SIZE, VOCAB_TOKENS, head_config, head_tensors
from tests.kit.eagle3_plain import plain_fused, plain_outputs, rms

_LEN, _SLOTS, _K = 48, 3, 4
_TARGET = TargetShape(HIDDEN_SIZE, VOCAB_TOKENS, 2)
_GREEDY = SamplingParams(temperature=0.0)
_EAGLE_3_1 = ("norm_before_residual", "norm_before_fc", "norm_output")
"""What speculators trains heads with by default."""


def _rows(seed: int = 1) -> Tensor:
    return torch.randn(VOCAB_TOKENS, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed))


def _shared() -> SharedRows:
    return SharedRows(_rows(), _rows(2), None)


def _head(raw: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Head:
    return head_of(parse_config(raw, _TARGET), dict(tensors), _rows())


def _drafter(head: Head, *, max_context_tokens: int = _LEN) -> FeatureDrafter:
    drafter = FeatureDrafter(
        head.config, _shared(), TORCH, num_slots=_SLOTS, max_context_tokens=max_context_tokens, max_length=_K
    )
    drafter.prepare(head.state, 3)()
    return drafter


def _chain(
    raw: Mapping[str, Any], w: Mapping[str, Tensor], embedding_VH: Tensor, tokens: Sequence[int], hidden_TJ: Tensor
) -> tuple[list[int], Tensor]:
    """The greedy chain of `_K` tokens after known ones, and the logits `[R]` of its last step.

    `fc` is applied where the target's states are known; from there on an entry reads the output before it.
    """
    known, ids = list(tokens), []
    hidden = plain_fused(raw, w, hidden_TJ[: len(known) - 1])
    for _ in range(_K):
        outputs_TH = plain_outputs(raw, w, embedding_VH[torch.tensor(known[1:])], hidden)
        normed_H = rms(outputs_TH[-1], w["norm.weight"], raw["rms_norm_eps"])
        logits_R = normed_H @ w["lm_head.weight"].T
        best = int(logits_R.argmax())
        ids.append(best + int(w["d2t"][best]))
        known.append(ids[-1])
        hidden = torch.cat((hidden, normed_H[None] if raw.get("norm_output") else outputs_TH[-1:]))
    return ids, logits_R


def _batch(
    num_tokens: list[int], lengths: list[int] | None = None, params: SamplingParams = _GREEDY, size: int = HIDDEN_SIZE
) -> DraftBatch:
    generator = torch.Generator().manual_seed(4)
    return DraftBatch(
        torch.randint(VOCAB_TOKENS, (_SLOTS, _LEN), generator=generator),
        torch.randn(_SLOTS, _LEN, 3 * size, generator=generator),
        num_tokens,
        lengths or [_K] * len(num_tokens),
        [params] * len(num_tokens),
        [Random(row) for row in range(len(num_tokens))],
    )


@pytest.mark.parametrize(
    "norms", [(), ("norm_before_residual",), ("norm_before_fc",), ("fc_norm",), ("norm_output",), _EAGLE_3_1]
)
def test_chains_equal_the_plain_implementation(norms: tuple[str, ...]) -> None:
    """Rows of unlike length; between rounds one to five tokens are committed, so the cache is continued."""
    raw = head_config(**dict.fromkeys(norms, True))
    w = head_tensors(raw)
    drafter, num_tokens, said = _drafter(_head(raw, w)), [2, 30, 9], set()
    for number in range(4):
        batch = _batch(num_tokens)
        proposed = drafter.propose(batch)
        for row, num in enumerate(num_tokens):
            right, _ = _chain(raw, w, _rows(), batch.tokens_SL[row, :num].tolist(), batch.hidden_SLH[row])
            assert torch.as_tensor(proposed.token_ids_BK)[row].tolist() == right, (number, row)
            said.update(right)
        num_tokens = [num + 1 + (row + 2 * number) % 5 for row, num in enumerate(num_tokens)]
    assert len(said) > 6 and max(said) >= 16  # the target's ids, not places in the head's vocabulary


def test_draft_distributions_are_the_plain_softmax() -> None:
    """One proposed token: the distribution that it is drawn from, over the target's vocabulary."""
    raw = head_config()
    w = head_tensors(raw)
    batch = _batch([12, 5], [1, 1], SamplingParams(temperature=1.0))
    probs_BKV = torch.as_tensor(_drafter(_head(raw, w)).propose(batch).draft_probs_BKV)
    ids_R = torch.arange(raw["draft_vocab_size"]) + w["d2t"]
    for row, num in enumerate(batch.num_tokens):
        hidden = batch.hidden_SLH[row, : num - 1] @ w["fc.weight"].T
        outputs_TH = plain_outputs(raw, w, _rows()[batch.tokens_SL[row, 1:num]], hidden)
        logits_R = rms(outputs_TH[-1], w["norm.weight"], raw["rms_norm_eps"]) @ w["lm_head.weight"].T
        right_V = torch.zeros(VOCAB_TOKENS).index_copy(0, ids_R, logits_R.softmax(0))
        torch.testing.assert_close(probs_BKV[row, 0], right_V, rtol=1e-4, atol=1e-5)


def test_a_cache_that_is_continued_equals_one_that_is_read_anew() -> None:
    raw = head_config()
    head = _head(raw, head_tensors(raw))
    continued = _drafter(head)
    for num in (3, 5, 9, 10, 21):
        got = torch.as_tensor(continued.propose(_batch([num])).token_ids_BK)
        anew = torch.as_tensor(_drafter(head).propose(_batch([num])).token_ids_BK)
        assert torch.equal(got, anew)


def test_long_prompts_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from osd.kernels.reference.drafting import eagle3_round

    raw = head_config()
    head, batch = _head(raw, head_tensors(raw)), _batch([40, 33])
    whole = torch.as_tensor(_drafter(head).propose(batch).token_ids_BK)
    monkeypatch.setattr(eagle3_round, "_CHUNK_ENTRIES", 7)
    assert torch.equal(torch.as_tensor(_drafter(head).propose(batch).token_ids_BK), whole)


def test_a_row_keeps_nothing_of_the_query_before_and_can_be_exchanged() -> None:
    raw = head_config()
    head = _head(raw, head_tensors(raw))
    drafter = _drafter(head)
    drafter.propose(_batch([20, 30]))
    drafter.reset_row(0)
    drafter.swap_rows(0, 1)
    batch = _batch([31, 6])
    for tensor in (batch.tokens_SL, batch.hidden_SLH):
        tensor[[0, 1]] = tensor[[1, 0]]  # the second query goes on in the first row, where another begins in its place
    got = torch.as_tensor(drafter.propose(batch).token_ids_BK)
    assert torch.equal(got, torch.as_tensor(_drafter(head).propose(batch).token_ids_BK))


def test_an_embedding_of_its_own_and_another_size_than_the_targets() -> None:
    size = 24
    raw = head_config(hidden_size=size, target_hidden_size=HIDDEN_SIZE, head_dim=8)
    own_VH = torch.randn(VOCAB_TOKENS, size, generator=torch.Generator().manual_seed(8))
    w = {**head_tensors(raw), "embed_tokens.weight": own_VH}
    batch = _batch([17])
    got = torch.as_tensor(_drafter(_head(raw, w)).propose(batch).token_ids_BK)[0].tolist()
    assert got == _chain(raw, w, own_VH, batch.tokens_SL[0, :17].tolist(), batch.hidden_SLH[0])[0]


def test_a_window_limits_what_is_attended_to() -> None:
    """With a window as wide as the row nothing changes; with a narrower one early hidden states do not matter."""
    raw = head_config()
    w = head_tensors(raw)
    narrow, wide = (_head({**raw, "use_sliding_window": True, "sliding_window": num}, w) for num in (4, 40))
    assert (narrow.config.window_tokens, wide.config.window_tokens) == (4, 40)
    batch, other = _batch([30]), _batch([30])
    other.hidden_SLH[:, :20] += 1.0

    def proposals(head: Head) -> list[list[int]]:
        return [torch.as_tensor(_drafter(head).propose(one).token_ids_BK)[0].tolist() for one in (batch, other)]

    assert proposals(wide)[0] == _chain(raw, w, _rows(), batch.tokens_SL[0, :30].tolist(), batch.hidden_SLH[0])[0]
    assert proposals(narrow)[0] == proposals(narrow)[1] and proposals(wide)[0] != proposals(wide)[1]


def test_foreign_weights_are_refused() -> None:
    raw = head_config()
    head = _head(raw, head_tensors(raw))
    drafter = _drafter(head)
    twice = head.state["vocab_ids_R"].clone()
    twice[1] = twice[0]
    for spoilt, words in (
        ({**head.state, "fc.weight": head.state["fc.weight"][:, 1:]}, "'fc.weight' has shape"),
        ({**head.state, "vocab_ids_R": twice}, "twice"),
        ({name: one for name, one in head.state.items() if name != "norm.weight"}, "'norm.weight' is missing"),
    ):
        with pytest.raises(WeightsRefusedError, match=words):
            drafter.prepare(spoilt, 4)
    assert (drafter.id.name, drafter.id.version) == ("eagle3", 3)


def test_rope_of_every_supported_type_is_transformers_own() -> None:
    """Two positions that scaling treats differently; what a type computes is transformers' own tests' matter."""
    scalings: list[dict[str, Any]] = [
        {"type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ]
    seen = []
    for scaling in [None, *scalings]:
        config: Eagle3Config = parse_config(head_config(rope_scaling=scaling), _TARGET)
        cos_LD, sin_LD = config.network().rotation(torch.arange(40), torch.float32)
        assert cos_LD.shape == sin_LD.shape == (40, 16) and bool(cos_LD.isfinite().all())
        seen.append(cos_LD[37, :8])
    positions = torch.tensor([37.0 / 4.0])
    torch.testing.assert_close(seen[1], (positions * 500.0 ** (-torch.arange(8) / 8)).cos())
    assert not any(torch.allclose(seen[0], other) for other in seen[1:])
