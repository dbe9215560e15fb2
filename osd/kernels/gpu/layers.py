"""A Llama-shaped model's layers on a GPU: few rows by our fused kernels, many rows by library products.

Both variants compute `osd.kernels.reference.llama.LlamaLayer`, layer after layer, and the norm after them; they differ
in which operations one launch fuses.

Shapes: R rows, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from osd.kernels.reference.attention import Attention
from osd.kernels.reference.projections import DenseProjection


class Layer(Protocol):
    """One decoder layer's weights."""

    dense: dict[str, DenseProjection]
    """`qkv`, `attention_out`, `gate_up` and `down`."""
    attention_norm: Any
    """A `Norm`, or a transformers module with the same attributes."""
    mlp_norm: Any

    def norm_heads(self, heads: Tensor, /) -> Tensor:
        """Normalise projected queries and keys, where the model does, before rotary embedding."""
        ...


def read_layers(layers: Sequence[Layer], rows_RH: Tensor, attend: Attention, last_norm: Any) -> Tensor:
    """Run all layers; returns the last hidden states after the final norm, `[R, H]`.

    Args:
        layers: all layers.
        rows_RH: embedded tokens.
        attend: the attention of the pass.
        last_norm: the model's final norm.
    """
    norms = [*(layer.attention_norm for layer in layers[1:]), last_norm]
    read = _read_few if _are_few(rows_RH) and layers[0].dense["gate_up"].bias_O is None else _read_many
    return read(layers, rows_RH, attend, norms)


def project(projection: DenseProjection, rows: Tensor) -> Tensor:
    """Apply a projection to rows `[..., I]`."""
    if not _are_few(rows.flatten(0, -2)):
        return projection(rows)
    from osd.kernels.gpu.product import product

    projected_RO = product(rows.flatten(0, -2), projection)
    return projected_RO.view(*rows.shape[:-1], -1)


def _are_few(rows_RI: Tensor) -> bool:
    """Whether our product kernels are used for this number of rows."""
    from osd.kernels.gpu.product import MOST_ROWS

    return len(rows_RI) <= MOST_ROWS and rows_RI.dtype in (torch.bfloat16, torch.float16)


def _read_few(layers: Sequence[Layer], rows_RH: Tensor, attend: Attention, next_norms: Sequence[Any]) -> Tensor:
    """Norms, gates and residual additions are fused with the products (`osd.kernels.gpu.product`)."""
    from osd.kernels.gpu.product import product, product_onto
    from osd.kernels.gpu.rows import enter, normed

    stream = enter(rows_RH, layers[0].attention_norm.weight)
    for index, (layer, next_norm) in enumerate(zip(layers, next_norms, strict=True)):
        qkv, out, gate_up, down = (layer.dense[name] for name in ("qkv", "attention_out", "gate_up", "down"))
        eps = layer.attention_norm.variance_epsilon
        heads = product(stream.scaled_RH, qkv, squares_TR=stream.squares_TR, eps=eps)
        attended = attend(index, layer.norm_heads(heads))
        stream = product_onto(attended, out, stream.rows_RH, layer.mlp_norm.weight)
        eps = layer.mlp_norm.variance_epsilon
        gated = product(stream.scaled_RH, gate_up, squares_TR=stream.squares_TR, eps=eps, is_gated=True)
        stream = product_onto(gated, down, stream.rows_RH, next_norm.weight)
    return normed(stream.rows_RH, next_norms[-1].weight, next_norms[-1].variance_epsilon)


def _read_many(layers: Sequence[Layer], rows_RH: Tensor, attend: Attention, next_norms: Sequence[Any]) -> Tensor:
    """Products are torch's; the operations between two of them are one launch (`osd.kernels.gpu.rows`)."""
    from osd.kernels.gpu.rows import added_and_normed, gated, normed

    first = layers[0].attention_norm
    normed_RH = normed(rows_RH, first.weight, first.variance_epsilon)
    for index, (layer, next_norm) in enumerate(zip(layers, next_norms, strict=True)):
        attended = attend(index, layer.norm_heads(layer.dense["qkv"](normed_RH)))
        mixed, norm = layer.dense["attention_out"](attended), layer.mlp_norm
        rows_RH, normed_RH = added_and_normed(rows_RH, mixed, norm.weight, norm.variance_epsilon)
        mixed, norm = layer.dense["down"](gated(layer.dense["gate_up"](normed_RH))), next_norm
        rows_RH, normed_RH = added_and_normed(rows_RH, mixed, norm.weight, norm.variance_epsilon)
    return normed_RH
