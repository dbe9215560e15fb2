"""Checks a drafter version's weights against the drafter that is to use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from osd.records.errors import WeightsRefusedError


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights that do not fit, before anything is changed.

    Raises:
        WeightsRefusedError: a tensor is missing, unknown or of another shape, or holds NaN or infinity.
    """
    if missing := sorted(expected.keys() - state.keys()):
        raise WeightsRefusedError(f"tensor {missing[0]!r} is missing; the weights are of another kind of drafter")
    if foreign := sorted(state.keys() - expected.keys()):
        raise WeightsRefusedError(f"tensor {foreign[0]!r} is unknown; the weights are of another kind of drafter")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, this drafter's is {tuple(expected[name].shape)}"
            raise WeightsRefusedError(f"tensor {name!r} has shape {shapes}; was it made for another target?")
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise WeightsRefusedError(f"tensor {name!r} holds NaN or infinity; the version is spoilt")
        if not tensor.is_floating_point() and expected[name].dtype != tensor.dtype:
            raise WeightsRefusedError(f"tensor {name!r} has type {tensor.dtype}, expected {expected[name].dtype}")


def _is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite. A finite sum implies it, and is several times as fast to compute."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def model_state(model: Any) -> dict[str, Tensor]:
    """The tensors of a `model` drafter's version; tied weights once."""
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    names = set(getattr(model, "_tied_weights_keys", None) or ()) if tied else set()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in names}
