"""Exponentially decaying counts of the traffic's tokens, from which a drafter's reduced vocabulary is chosen.

FR-Spec (Zhao et al. 2025, arXiv 2502.14856) takes the vocabulary from a fixed corpus; here it follows the traffic.
No trained weight depends on the vocabulary, so changing it costs no training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from osd.records.outcome import Outcome
from osd.records.outcome_arrays import top_k_arrays

_HALF_LIFE_RECORDS = 2000
_KEPT_AFTER_CHANGE = 1 / 16


class TokenCounts:
    """Expected occurrences of each token id in recent outputs, float32 [V]; with infinite half-life, in all outputs."""

    def __init__(self, vocab_tokens: int, half_life_records: float = _HALF_LIFE_RECORDS) -> None:
        self.counts_V = torch.zeros(vocab_tokens)
        self._fading = 0.5 ** (1.0 / half_life_records)

    def observe(self, outcome: Outcome) -> None:
        """Count the emitted tokens, and the target's top-K tokens by their probabilities."""
        ids_OK, log_probs_OK = top_k_arrays(outcome)
        self.counts_V *= self._fading
        emitted_O = torch.tensor(outcome.output_ids)
        self.counts_V.index_add_(0, emitted_O, torch.ones(len(emitted_O)))
        probs = torch.from_numpy(log_probs_OK.astype("float32")).exp()
        self.counts_V.index_add_(0, torch.from_numpy(ids_OK.astype("int64")).flatten(), probs.flatten())

    def focus_on_present(self) -> None:
        """React to a change of traffic: reduce all counts so far."""
        self.counts_V *= _KEPT_AFTER_CHANGE


def most_frequent(counts_V: Tensor, num_tokens: int) -> Tensor:
    """The `num_tokens` most frequent token ids, ascending, int64; ties go to the lower id."""
    return counts_V.sort(descending=True, stable=True).indices[:num_tokens].sort().values
