"""Packs and unpacks the arrays of an Outcome; their layout is described in osd/records/outcome.py.

Shapes: O = output tokens, K = `top_k` or `rejected_top_k`, N = positions whose hidden state was kept,
H = `hidden_size`, R = drafted tokens from the first rejected one of each round on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from osd.records.outcome import Outcome

_IDS = np.dtype("<i4")
_LOGPROBS = np.dtype("<f2")
_HIDDEN_BYTES = 2  # bfloat16

# For tokens of probability zero: -inf would give 0 * -inf = NaN in the trainer's sums, and exp(-65504) is zero as well.
LOWEST_LOGPROB = float(np.finfo(np.float16).min)


def top_k_arrays(outcome: Outcome) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    """The target's most likely tokens: ids int32 [O, K] and log-probabilities float16 [O, K], best first.

    Both are read-only views of the outcome's bytes.

    Raises:
        ValueError: the bytes do not fit the shape.
    """
    shape = (len(outcome.output_ids), outcome.top_k)
    return (
        np.frombuffer(outcome.top_ids, dtype=_IDS).reshape(shape),
        np.frombuffer(outcome.top_logprobs, dtype=_LOGPROBS).reshape(shape),
    )


def rejected_arrays(outcome: Outcome) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float16]]:
    """Drafted tokens int32 [R], and the target's most likely tokens after each: int32 and float16 [R, K], best first.

    All are read-only views of the outcome's bytes.

    Raises:
        ValueError: the bytes do not fit the shape.
    """
    ids_R = np.frombuffer(outcome.rejected_ids, dtype=_IDS)
    shape = (len(ids_R), outcome.rejected_top_k)
    return (
        ids_R,
        np.frombuffer(outcome.rejected_top_ids, dtype=_IDS).reshape(shape),
        np.frombuffer(outcome.rejected_top_logprobs, dtype=_LOGPROBS).reshape(shape),
    )


def pack_ids(ids: Sequence[int]) -> bytes:
    """`Outcome.rejected_ids` from token ids."""
    return np.array(ids, dtype=_IDS).tobytes()


def hidden_states(outcome: Outcome) -> torch.Tensor | None:
    """The target's last hidden states, bfloat16 [N, H] on the CPU (a copy), or None when none were kept.

    Row i is at absolute position `hidden_start + i`.

    Raises:
        ValueError: the bytes do not fit the shape.
    """
    if not outcome.hidden:
        return None
    if outcome.hidden_size < 1 or len(outcome.hidden) % (_HIDDEN_BYTES * outcome.hidden_size):
        raise ValueError(f"{len(outcome.hidden)} bytes of hidden states are no rows of {outcome.hidden_size} bfloat16")
    # bytearray: torch wants memory that it may write.
    return torch.frombuffer(bytearray(outcome.hidden), dtype=torch.bfloat16).reshape(-1, outcome.hidden_size)


def pack_top_k(
    ids_OK: torch.Tensor | NDArray[np.integer], logprobs_OK: torch.Tensor | NDArray[np.floating]
) -> tuple[bytes, bytes, int]:
    """(`top_ids`, `top_logprobs`, `top_k`) from arrays [O, K] of any integer and float type, on any device.

    Log-probabilities below float16's range, including -inf, become `LOWEST_LOGPROB`.

    Raises:
        ValueError: the shapes differ or are not two-dimensional.
    """
    if len(ids_OK.shape) != 2 or tuple(ids_OK.shape) != tuple(logprobs_OK.shape):
        raise ValueError(f"top-k arrays must both be [O, K], not {list(ids_OK.shape)} and {list(logprobs_OK.shape)}")
    ids = ids_OK.detach().to("cpu").numpy() if isinstance(ids_OK, torch.Tensor) else ids_OK
    logprobs = (
        logprobs_OK.detach().to("cpu", torch.float32).numpy() if isinstance(logprobs_OK, torch.Tensor) else logprobs_OK
    )
    packed_logprobs = np.maximum(logprobs, LOWEST_LOGPROB).astype(_LOGPROBS).tobytes()
    return ids.astype(_IDS).tobytes(), packed_logprobs, int(ids_OK.shape[1])


def pack_hidden(hidden_NH: torch.Tensor) -> bytes:
    """`Outcome.hidden` from hidden states [N, H] of any float type, on any device."""
    return hidden_NH.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


def check_shapes(outcome: Outcome) -> None:
    """Check that every packed array has the shape that the outcome states.

    Raises:
        ValueError: an array has not; the message names it.
    """
    outputs = len(outcome.output_ids)
    hidden_rows = len(outcome.prompt_ids) + outputs - 1 - outcome.hidden_start
    rejected = sum(outcome.num_rejected())
    expected_bytes = {
        "output_kinds": outputs,
        "top_ids": outputs * outcome.top_k * _IDS.itemsize,
        "top_logprobs": outputs * outcome.top_k * _LOGPROBS.itemsize,
        "hidden": hidden_rows * outcome.hidden_size * _HIDDEN_BYTES if outcome.hidden else 0,
        "rejected_ids": rejected * _IDS.itemsize,
        "rejected_top_ids": rejected * outcome.rejected_top_k * _IDS.itemsize,
        "rejected_top_logprobs": rejected * outcome.rejected_top_k * _LOGPROBS.itemsize,
    }
    if min(outcome.top_k, outcome.rejected_top_k, outcome.hidden_size, outcome.hidden_start) < 0:
        raise ValueError("top_k, rejected_top_k, hidden_size and hidden_start must not be negative")
    for name, size_bytes in expected_bytes.items():
        if len(getattr(outcome, name)) != size_bytes:
            raise ValueError(f"{name} has {len(getattr(outcome, name))} bytes where its shape needs {size_bytes}")
