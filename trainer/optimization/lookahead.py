"""The Lookahead optimizer, which torch.optim lacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Lookahead(torch.optim.AdamW):
    """AdamW inside Lookahead (Zhang et al. 2019, arXiv 1907.08610): every k steps, go part of the way back.

    torch_optimizer's wrapper cannot save its state under torch 2; this one keeps all of it in AdamW's state.

    Args:
        params: the parameters to train.
        lr: AdamW's learning rate.
        k: fast steps per slow step.
        alpha: share of the way from the slow to the fast weights that a slow step goes.
        options: AdamW's further arguments.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 1e-3, *, k: int = 5, alpha: float = 0.5, **options: Any
    ) -> None:
        if k < 1 or not 0.0 < alpha <= 1.0:
            raise ValueError("Lookahead needs k >= 1 and 0 < alpha <= 1")
        super().__init__(params, lr, **options)
        self._k, self._alpha = k, alpha

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One AdamW step, followed every k-th time by a slow step."""
        before = {p: p.clone() for p in self._trained() if "slow" not in self.state[p]}
        super().step(closure)
        for parameter in self._trained():
            state = self.state[parameter]
            slow: Tensor = state.setdefault("slow", before.get(parameter))
            if int(state["step"]) % self._k == 0:
                parameter.copy_(slow.lerp_(parameter, self._alpha))

    def _trained(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]
