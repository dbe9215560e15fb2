"""Training examples from an outcome. The alignment of drafter and target is defined here and nowhere else.

Let P be the number of prompt tokens and O of output tokens. Output j is at absolute position P + j; row j of the
outcome's top-K is the target's distribution for it. A training *column* at absolute position t

* of the `model` drafter (lookahead 1) reads token t and predicts token t + 1;
* of the `feature` drafter (lookahead 2) reads token t + 1 and the target's hidden state at t, and predicts token t + 2.

In both cases column t reads token t + lookahead - 1 and predicts token t + lookahead, so its target distribution is row
j = t + lookahead - P. An off-by-one here would train the drafter to predict the token after the right one.

Shapes: T columns of which the last Q predict an output, H hidden size, K teacher ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from osd.records.outcome import RECOVERED, Outcome
from osd.records.outcome_arrays import check_shapes, hidden_states, rejected_arrays, top_k_arrays
from trainer.examples.branches import Branches, branches_of


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which inputs a kind of drafter reads, and how far ahead it predicts."""

    lookahead: int
    vocab_tokens: int
    """V; outcomes with token ids of V or above are not trained on."""
    hidden_size: int = 0
    """Size of the hidden states that it reads; 0: none."""
    context_columns: int = 256
    """Most context columns before the first predicting one; of a longer prompt only the end is used."""
    trained_context_columns: int | None = None
    """The same where it is trained on; None: as many."""
    branch_depth: int = 0
    """Deepest depth of chains over rejected tokens that is trained on; below 2: none."""

    def for_training(self) -> Alignment:
        """Of the examples of a training step."""
        columns = self.trained_context_columns
        return self if columns is None else replace(self, context_columns=min(columns, self.context_columns))


class ExampleKey(NamedTuple):
    """Identifies an example."""

    request_id: str
    first_predicting: int
    """Absolute position of its first predicting column."""


@dataclass(frozen=True, slots=True)
class Example:
    """A section of one outcome: context columns, then Q columns that each predict one output token."""

    key: ExampleKey
    first_position: int
    """Absolute position of the first column."""
    input_ids_T: Tensor
    hidden_TH: Tensor | None
    """bfloat16."""
    teacher_ids_QK: Tensor
    teacher_log_probs_QK: Tensor
    emitted_Q: Tensor
    in_loss_Q: Tensor
    """bool: columns that are trained on."""
    temperature: float
    branches: Branches | None = None
    """Chains over rejected tokens; None: there are none."""

    @property
    def num_columns(self) -> int:
        """T."""
        return len(self.input_ids_T)

    @property
    def num_predicting(self) -> int:
        """Q."""
        return len(self.emitted_Q)


def unfit_because(outcome: Outcome, alignment: Alignment) -> str:
    """The reason why an outcome cannot be trained on; empty if it can."""
    try:
        check_shapes(outcome)
    except ValueError as error:
        return str(error)
    if not outcome.output_ids or outcome.top_k < 1:
        return "it has no output with target log-probabilities"
    if alignment.hidden_size and (not outcome.hidden or outcome.hidden_size != alignment.hidden_size):
        return f"it carries hidden states of size {outcome.hidden_size}, the drafter needs {alignment.hidden_size}"
    ids_OK, _ = top_k_arrays(outcome)
    arrays = [ids_OK, *rejected_arrays(outcome)[:2]] if outcome.rejected_ids else [ids_OK]
    ids = (*outcome.prompt_ids, *outcome.output_ids, *(int(end) for one in arrays for end in (one.min(), one.max())))
    if min(ids) < 0 or max(ids) >= alignment.vocab_tokens:
        return "it has token ids outside the target's vocabulary"
    if not _is_finite(outcome):
        return "it has hidden states or log-probabilities that are not finite"
    return ""


def _is_finite(outcome: Outcome) -> bool:
    hidden_NH, (_, log_probs_OK) = hidden_states(outcome), top_k_arrays(outcome)
    return bool(np.isfinite(log_probs_OK).all()) and (hidden_NH is None or bool(hidden_NH.isfinite().all()))


def make_examples(
    outcome: Outcome, alignment: Alignment, *, max_predicting: int, positions: Literal["all", "rejected"] = "all"
) -> Iterator[Example]:
    """Cut an outcome into examples of at most `max_predicting` predicting columns.

    Args:
        outcome: one for which `unfit_because` is empty.
        alignment: the drafter's.
        max_predicting: most predicting columns of one example.
        positions: "rejected" trains only on outputs at which the drafter was wrong (Liu et al. 2023, arXiv 2310.07177,
            store only these).
    """
    prompt_len, shift = len(outcome.prompt_ids), alignment.lookahead
    tokens = torch.tensor(outcome.prompt_ids + outcome.output_ids)
    hidden_NH = hidden_states(outcome) if alignment.hidden_size else None
    oldest = outcome.hidden_start if alignment.hidden_size else 0
    ids_OK, log_probs_OK = top_k_arrays(outcome)
    in_loss_O = torch.ones(len(outcome.output_ids), dtype=torch.bool)
    if positions == "rejected":
        in_loss_O = torch.tensor([kind == RECOVERED for kind in outcome.output_kinds])
    branches = branches_of(outcome, alignment.branch_depth) if alignment.branch_depth > 1 else None
    # Columns start at `oldest`, so with a prompt of one token no column predicts output 0.
    for first in range(max(prompt_len - shift, oldest), len(tokens) - shift, max_predicting):
        end = min(first + max_predicting, len(tokens) - shift)
        start = max(first - alignment.context_columns, oldest)
        outputs = slice(first + shift - prompt_len, end + shift - prompt_len)
        yield Example(
            key=ExampleKey(outcome.request_id, first),
            first_position=start,
            input_ids_T=tokens[start + shift - 1 : end + shift - 1],
            hidden_TH=None if hidden_NH is None else hidden_NH[start - oldest : end - oldest],
            teacher_ids_QK=torch.from_numpy(ids_OK[outputs].astype("int64")),
            teacher_log_probs_QK=torch.from_numpy(log_probs_OK[outputs].astype("float32")),
            emitted_Q=tokens[prompt_len:][outputs],
            in_loss_Q=in_loss_O[outputs],
            temperature=outcome.sampling.temperature,
            branches=None if branches is None else branches.between(first, end),
        )
