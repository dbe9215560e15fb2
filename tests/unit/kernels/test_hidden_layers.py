"""Every back end stores the residual streams that enter chosen layers, where a drafter reads those."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from osd.kernels.backend import Sizes
from tests.kit.rounding import decoder_gap, gap_of_rows
from tests.kit.small_shape import SMALL_SHAPE
from tests.unit.kernels.conftest import Case

_VOCAB = 64
_SIZES = Sizes(num_slots=2, max_positions=48, max_len=64, max_round_tokens=5)


def _model() -> Any:
    config = transformers.LlamaConfig(
        **SMALL_SHAPE | {"vocab_size": _VOCAB, "initializer_range": 0.3, "num_hidden_layers": 5}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.mark.parametrize("layers", [(2, 4, 4), (0, 3, 1)])
def test_what_enters_the_layers_is_stored(case: Case, layers: tuple[int, ...]) -> None:
    """A prompt in two parts, then a round of two rows; logits and last hidden states are returned as ever."""
    model = _model().to(case.device, case.dtype)
    size, bound = model.config.hidden_size, decoder_gap(case.dtype, num_layers=5, num_terms=48)
    ids_BL = torch.randint(0, _VOCAB, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        right = model(ids_BL.to(case.device), output_hidden_states=True)
    right_BLJ = torch.cat([right.hidden_states[layer] for layer in layers], dim=-1).cpu()
    kept = case.backend.rows(2, 64, torch.empty(0, 3 * size, dtype=case.dtype, device=case.device))
    decoder = case.backend.decoder(model, _SIZES, kept=kept, frozen=True, is_int4=False, hidden_layers=layers)
    assert decoder is not None
    decoder.pack()
    ids = ids_BL.to(case.device)
    for row in range(2):
        decoder.read(row, ids[row : row + 1, :9], [0], logits="none")
        decoder.read(row, ids[row : row + 1, 9:14], [9], logits="last")
    last = decoder.read(0, ids[:, 14:], [14, 14], logits="all")
    assert gap_of_rows(last.hidden_BQH.cpu(), right.hidden_states[-1][:, 14:].cpu()) < bound
    assert gap_of_rows(last.logits_BQV.cpu(), right.logits[:, 14:].cpu()) < bound
    assert gap_of_rows(kept.hidden_SLH[:, :17].cpu(), right_BLJ) < bound
    assert not kept.hidden_SLH[:, 17:].any()
