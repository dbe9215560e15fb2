"""Optimizers by name, from torch.optim and torch_optimizer, with errors that say what to write instead."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from osd.config import ConfigError

_REFUSED = {
    "LBFGS": "it needs to evaluate the loss several times per step",
    "Adahessian": "it needs second derivatives",
    "SparseAdam": "it takes sparse gradients only",
    "Optimizer": "it is only the base class",
}


class Lookahead(torch.optim.AdamW):
    """AdamW inside Lookahead (Zhang et al. 2019, arXiv 1907.08610): every k steps, go back part of the way.

    torch_optimizer's own wrapper cannot save its state under torch 2, so this one keeps everything in AdamW's.

    Args:
        params: what is trained.
        lr: AdamW's step size.
        k: fast steps per slow step.
        alpha: share of the way from the slow to the fast weights that a slow step takes.
        options: AdamW's.
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
        """One AdamW step, and every k-th time a slow one."""
        before = {p: p.clone() for p in self._trained() if "slow" not in self.state[p]}
        super().step(closure)
        for parameter in self._trained():
            state = self.state[parameter]
            slow: Tensor = state.setdefault("slow", before.get(parameter))
            if int(state["step"]) % self._k == 0:
                parameter.copy_(slow.lerp_(parameter, self._alpha))

    def _trained(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices, AdamW for what it has no rule for: vectors.

    A matrix's update is made as large as AdamW's would be (Liu et al. 2025, arXiv 2502.16982): one step size fits both.

    Args:
        params: what is trained; at least one matrix.
        lr: step size.
        weight_decay: of both.
        momentum: Muon's.
        ns_steps: Newton-Schulz iterations that make an update orthogonal.
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
        # The parts' own groups: whoever sets a step size sets theirs.
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Of the parts."""
        return {str(number): part.state_dict() for number, part in enumerate(self._parts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for number, part in enumerate(self._parts):
            part.load_state_dict(state_dict[str(number)])
        self.param_groups = [group for part in self._parts for group in part.param_groups]


def create_optimizer(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """An optimizer by its class name; torch.optim wins where both libraries have one of that name.

    Args:
        name: `trainer.optimizer`.
        parameters: what is trained.
        learning_rate: `trainer.learning_rate`.
        options: `trainer.optimizer_options`, the class's further arguments.

    Raises:
        ConfigError: the name is unknown or of a class that cannot be used here, or it refuses an option.
    """
    known = _known()
    if name in _REFUSED:
        raise ConfigError(f"trainer.optimizer '{name}' cannot be used: {_REFUSED[name]}; try AdamW")
    if name not in known:
        hint = _close(name, known) or "AdamW, AdamP, RAdam, Lamb, Lookahead, SGD"
        raise ConfigError(f"trainer.optimizer '{name}' is unknown; did you mean {hint}?")
    accepted = [parameter for parameter in _arguments(known[name]) if parameter not in ("params", "lr")]
    for option in options:
        if option not in accepted:
            close = _close(option, accepted)
            hint = f"did you mean {close}?" if close else f"it has {', '.join(accepted)}"
            if option == "lr":
                hint = "set trainer.learning_rate instead"
            raise ConfigError(f"trainer.optimizer_options '{option}' is no option of {name}; {hint}")
    try:
        optimizer: torch.optim.Optimizer = known[name](parameters, lr=learning_rate, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"trainer.optimizer_options do not fit {name}: {error}") from None
    return optimizer


def warmed_up(learning_rate: float, step: int, warmup_steps: int) -> float:
    """The step size of step 0, 1, …: a straight rise over `warmup_steps`, then constant."""
    return learning_rate * min(1.0, (step + 1) / (warmup_steps + 1))


def _known() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch_optimizer 0.3 was written for torch 1
        import torch_optimizer
    found: dict[str, Any] = {"Lookahead": Lookahead, "Muon": Muon}
    for module in (torch.optim, torch_optimizer):
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name not in _REFUSED:
                found.setdefault(name, value)
    return found


def _arguments(optimizer_class: Any) -> list[str]:
    """Names a class's constructor takes; a `**options` stands for its base class's."""
    names: list[str] = []
    for one in optimizer_class.__mro__:
        parameters = inspect.signature(one.__init__).parameters.values()
        names += [p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(dict.fromkeys(names))


def _close(name: str, known: Iterable[str]) -> str:
    by_lower = {one.lower(): one for one in known}
    return ", ".join(by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6))
