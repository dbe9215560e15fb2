"""Muon for drafters, which have both matrices and vectors; torch.optim.Muon takes matrices only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices and AdamW for vectors.

    A matrix's update is scaled to the RMS of an AdamW update (Liu et al. 2025, arXiv 2502.16982), so both optimizers
    can share one learning rate.

    Args:
        params: the parameters to train; at least one matrix.
        lr: learning rate.
        weight_decay: of both optimizers.
        momentum: Muon's.
        ns_steps: Newton-Schulz iterations, which orthogonalise Muon's update.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        ns_steps: int = 5,
    ) -> None:
        trained = list(params)
        matrices, vectors = [p for p in trained if p.ndim == 2], [p for p in trained if p.ndim != 2]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices,
                lr,
                weight_decay=weight_decay,
                momentum=momentum,
                ns_steps=ns_steps,
                adjust_lr_fn="match_rms_adamw",
            )
        ]
        if vectors:
            self._parts.append(torch.optim.AdamW(vectors, lr, weight_decay=weight_decay))
        super().__init__(trained, {})
        # The two optimizers' own groups, so that setting a group's learning rate reaches them.
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both optimizers."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of both optimizers."""
        return {str(number): part.state_dict() for number, part in enumerate(self._parts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for number, part in enumerate(self._parts):
            part.load_state_dict(state_dict[str(number)])
        self.param_groups = [group for part in self._parts for group in part.param_groups]
