"""Batches of examples, padded as little as possible.

A row of a batch is [context | predicting columns]; context is padded on its left, predicting columns on their right, so
that column C is the first predicting one in every row. Context columns then need no query, no MLP and no head, and the
predicting columns are a plain slice.

Shapes: B rows, T = C + Q columns, C of context, Q predicting, H hidden size, K teacher ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from trainer.examples.branches import Branches, pad_branches
from trainer.examples.examples import Example, ExampleKey
from trainer.losses.losses import Teacher

_MAX_PADDING_SHARE = 0.2
_NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples as the rows of padded tensors."""

    keys: tuple[ExampleKey, ...]
    """Of the rows."""
    num_context: int
    """C."""
    input_ids_BT: Tensor
    positions_BT: Tensor
    """Absolute positions; 0 at padding."""
    real_BT: Tensor
    """bool: not padding."""
    hidden_BTH: Tensor | None
    teacher_ids_BQK: Tensor
    """-1 at padding."""
    teacher_log_probs_BQK: Tensor
    emitted_BQ: Tensor
    in_loss_BQ: Tensor
    """bool: columns that are trained on; never padding."""
    temperature_B: Tensor
    branches: Branches | None = None
    """Chains over rejected tokens, W of each row (padded); None: there are none."""

    @property
    def num_predicting(self) -> int:
        """Q."""
        return self.emitted_BQ.shape[1]

    @property
    def predicting_BQ(self) -> Tensor:  # noqa: N802
        """bool: columns that predict an output, trained on or not."""
        return self.real_BT[:, self.num_context :]

    def teacher(self, mask_BQ: Tensor) -> Teacher:
        """The teacher's values at the columns of the mask, in row-major order."""
        return Teacher(self.teacher_ids_BQK[mask_BQ], self.teacher_log_probs_BQK[mask_BQ], self.emitted_BQ[mask_BQ])

    def rows(self, numbers: Sequence[int]) -> Batch:
        """Some of the rows, without their chains over rejected tokens."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values.update({name: one[list(numbers)] for name, one in values.items() if isinstance(one, Tensor)})
        return Batch(**{**values, "keys": tuple(self.keys[number] for number in numbers), "branches": None})

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values.update({name: one.to(device) for name, one in values.items() if isinstance(one, Tensor | Branches)})
        return Batch(**values)


def take_columns(examples: Iterable[Example], max_columns: int) -> list[Example]:
    """The first examples whose columns fit together; at least one."""
    taken: list[Example] = []
    num_columns = 0
    for example in examples:
        if taken and num_columns + example.num_columns > max_columns:
            break
        taken.append(example)
        num_columns += example.num_columns
    return taken


def make_batches(examples: Sequence[Example], max_columns: int) -> list[Batch]:
    """Batches of examples of similar length, to limit padding.

    Args:
        examples: in any order.
        max_columns: most columns of a batch, padding included; a longer example gets a batch of its own.
    """
    batches: list[Batch] = []
    group: list[Example] = []
    for example in sorted(examples, key=lambda one: (one.num_predicting, one.num_columns)):
        if group and _too_wide([*group, example], max_columns):
            batches.append(_pad(group))
            group = []
        group.append(example)
    return [*batches, _pad(group)] if group else batches


def _too_wide(group: Sequence[Example], max_columns: int) -> bool:
    num_context, num_predicting = _shape(group)
    padded = len(group) * (num_context + num_predicting)
    real = sum(example.num_columns for example in group)
    return padded > max_columns or padded - real > _MAX_PADDING_SHARE * padded


def _shape(group: Sequence[Example]) -> tuple[int, int]:
    """C and Q of a batch of these examples."""
    num_context = max(example.num_columns - example.num_predicting for example in group)
    return num_context, max(example.num_predicting for example in group)


def _pad(group: Sequence[Example]) -> Batch:
    rows, (num_context, num_predicting) = len(group), _shape(group)
    columns, top_k = num_context + num_predicting, max(example.teacher_ids_QK.shape[1] for example in group)
    first = group[0].hidden_TH
    batch = Batch(
        keys=tuple(example.key for example in group),
        num_context=num_context,
        input_ids_BT=torch.zeros(rows, columns, dtype=torch.long),
        positions_BT=torch.zeros(rows, columns, dtype=torch.long),
        real_BT=torch.zeros(rows, columns, dtype=torch.bool),
        hidden_BTH=None if first is None else first.new_zeros(rows, columns, first.shape[1]),
        teacher_ids_BQK=torch.full((rows, num_predicting, top_k), _NO_TOKEN),
        teacher_log_probs_BQK=torch.full((rows, num_predicting, top_k), torch.finfo(torch.float16).min),
        emitted_BQ=torch.full((rows, num_predicting), _NO_TOKEN),
        in_loss_BQ=torch.zeros(rows, num_predicting, dtype=torch.bool),
        temperature_B=torch.tensor([example.temperature for example in group]),
        branches=pad_branches([example.branches for example in group]),
    )
    for row, example in enumerate(group):
        start = num_context - (example.num_columns - example.num_predicting)
        span = slice(start, start + example.num_columns)
        batch.input_ids_BT[row, span] = example.input_ids_T
        batch.positions_BT[row, span] = example.first_position + torch.arange(example.num_columns)
        batch.real_BT[row, span] = True
        if batch.hidden_BTH is not None and example.hidden_TH is not None:
            batch.hidden_BTH[row, span] = example.hidden_TH
        num, own_top_k = example.teacher_ids_QK.shape
        batch.teacher_ids_BQK[row, :num, :own_top_k] = example.teacher_ids_QK
        batch.teacher_log_probs_BQK[row, :num, :own_top_k] = example.teacher_log_probs_QK
        batch.emitted_BQ[row, :num] = example.emitted_Q
        batch.in_loss_BQ[row, :num] = example.in_loss_Q
    return batch
