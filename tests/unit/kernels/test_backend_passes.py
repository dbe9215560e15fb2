"""Every back end's passes give what the reference gives in float64, and keep what they should."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from osd.kernels.backend import Decoder, RowMemory, Sizes, Way
from tests.kit.backends import TORCH
from tests.kit.rounding import decoder_gap, gap_of_rows
from tests.kit.small_shape import SMALL_SHAPE
from tests.unit.kernels.conftest import Case

_VOCAB, _SLOTS, _MAX = 64, 4, 48
_SHAPE: dict[str, Any] = SMALL_SHAPE | {"vocab_size": _VOCAB, "initializer_range": 0.3}
_KINDS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 6},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
}
_SIZES = Sizes(num_slots=_SLOTS, max_positions=_MAX, max_len=_MAX + 16, max_round_tokens=5)


def _model(kind: str = "Llama") -> Any:
    config = getattr(transformers, f"{kind}Config")(**_SHAPE, **_KINDS[kind])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, f"{kind}ForCausalLM")(config).eval().requires_grad_(False)


def _decoder(case: Case, model: Any, *, kept: RowMemory | None = None) -> Decoder:
    decoder = case.backend.decoder(model.to(case.device, case.dtype), _SIZES, kept=kept, frozen=True, is_int4=False)
    assert decoder is not None
    decoder.pack()
    return decoder


def _exact(case: Case, model: Any) -> Decoder:
    """The reference with the same weights, in float64."""
    exact = TORCH.decoder(copy.deepcopy(model).to(case.dtype).double(), _SIZES, kept=None, frozen=True, is_int4=False)
    assert exact is not None
    return exact


def _ids(num_rows: int, num_new: int, seed: int) -> Tensor:
    return torch.randint(0, _VOCAB, (num_rows, num_new), generator=torch.Generator().manual_seed(seed))


def _ways(decoder: Decoder) -> list[Way]:
    """What serves, which captures rounds, and each way by itself."""

    class _Serving:
        name = "serving"
        read = decoder.read

    return [_Serving(), *decoder.ways]


@pytest.mark.parametrize(
    "kind", ["Llama", "Qwen3", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("Mistral", "Qwen2"))]
)
def test_ragged_passes_are_those_of_float64(case: Case, kind: str) -> None:
    """Rows alone and together, of unlike length and not from the first on; few new positions, and many."""
    model = _model(kind)
    exact, bound = _exact(case, model), decoder_gap(case.dtype, num_layers=2, num_terms=48)
    decoder = _decoder(case, model)
    for number, way in enumerate(_ways(decoder)):
        for row, length in enumerate((21, 3, 14, 9)):
            ids_1Q = _ids(1, length, 10 * number + row)
            exact.read(row, ids_1Q, [0], logits="none")
            assert way.read(row, ids_1Q.to(case.device), [0], logits="none").logits is None
        for first_row, starts, num_new in ((0, [21, 3, 14], 3), (0, [22, 4], 1), (1, [4, 15, 9], 5), (0, [23, 5], 12)):
            ids_BQ = _ids(len(starts), num_new, number)
            right = exact.read(first_row, ids_BQ, starts, logits="all")
            got = way.read(first_row, ids_BQ.to(case.device), starts, logits="all")
            assert gap_of_rows(got.logits_BQV.cpu(), right.logits_BQV) < bound
            assert gap_of_rows(got.hidden_BQH.cpu(), right.hidden_BQH) < bound
        last = way.read(3, _ids(1, 4, 7).to(case.device), [9], logits="last").logits_BQV
        right = exact.read(3, _ids(1, 4, 7), [9], logits="last")
        assert last.shape == (1, 1, _VOCAB) and gap_of_rows(last.cpu(), right.logits_BQV) < bound


def test_rows_go_on_where_they_are_put(case: Case) -> None:
    """Also where both have changed places before, so that their rows are not where they were made."""
    model = _model()
    exact, decoder = _exact(case, model), _decoder(case, model)
    bound = decoder_gap(case.dtype, num_layers=2, num_terms=48)
    for cache, read in ((exact.cache, exact.read), (decoder.cache, decoder.read)):
        device = torch.device("cpu") if read == exact.read else case.device
        read(2, _ids(1, 18, 1).to(device), [0], logits="none")
        read(1, _ids(1, 9, 2).to(device), [0], logits="none")
        cache.swap(2, 0, 18)
        cache.copy(0, 3, 11)
        cache.clear(1, 5, 9)
    ids_BQ = _ids(4, 2, 3)
    right = exact.read(0, ids_BQ, [18, 5, 0, 11], logits="all").logits_BQV
    got = decoder.read(0, ids_BQ.to(case.device), [18, 5, 0, 11], logits="all").logits_BQV
    assert gap_of_rows(got.cpu(), right) < bound


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter, which uses numpy
def test_a_pass_keeps_its_hidden_states_and_zero_for_what_is_not_finite(case: Case) -> None:
    model = _model()
    like = model.lm_head.weight.to(case.device, case.dtype)
    kept = case.backend.rows(_SLOTS, _MAX + 16, like)
    decoder = _decoder(case, model, kept=kept)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.inf
    for first_row, starts, ids in ((1, [3], [[5, 6]]), (0, [0, 9], [[4, 3], [2, 7]])):
        output = decoder.read(first_row, torch.tensor(ids, device=case.device), starts, logits="all")
        for row, start in enumerate(starts, first_row):
            expected = output.hidden_BQH[row - first_row].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            assert torch.equal(kept.hidden_SLH[row, start : start + 2], expected)
    assert not output.hidden_BQH.isfinite().all()
    assert not kept.hidden_SLH[1, 10].any() and kept.hidden_SLH[0, :2].any(dim=-1).all()


def test_a_passs_most_likely_tokens_are_its_logits(case: Case) -> None:
    decoder = _decoder(case, _model())
    for num_new in (1, 4):
        output = decoder.read(0, _ids(3, num_new, 5).to(case.device), [0, 0, 0], logits="all")
        assert output.logits is not None
        best_BQ = torch.as_tensor(output.logits.best_BQ).cpu()
        assert torch.equal(best_BQ, output.logits_BQV.float().argmax(dim=-1).cpu())
