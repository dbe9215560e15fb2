"""Creates optimizers by name, from torch.optim, torch_optimizer and this package."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from osd.config.settings import ConfigError
from trainer.optimization.lookahead import Lookahead
from trainer.optimization.muon import Muon

_REFUSED = {
    "LBFGS": "it needs to evaluate the loss several times per step",
    "Adahessian": "it needs second derivatives",
    "SparseAdam": "it takes sparse gradients only",
    "Optimizer": "it is only the base class",
}


def create_optimizer(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """An optimizer by its class name; ours (Lookahead, Muon) take precedence, then torch.optim's.

    Args:
        name: `trainer.optimizer`.
        parameters: the parameters to train.
        learning_rate: `trainer.learning_rate`.
        options: `trainer.optimizer_options`, further arguments of the class.

    Raises:
        ConfigError: the name is unknown, the class cannot be used here, or it refuses an option.
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
    if "fused" in accepted and "foreach" not in options:
        options = {"fused": True, **options}  # one pass over the weights instead of one for each operation
    try:
        optimizer: torch.optim.Optimizer = known[name](parameters, lr=learning_rate, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"trainer.optimizer_options do not fit {name}: {error}") from None
    return optimizer


def warmed_up(learning_rate: float, step: int, warmup_steps: int) -> float:
    """The learning rate of step 0, 1, …: rises linearly over `warmup_steps`, then constant."""
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
    """Names that a class's constructor accepts; `**options` stands for its base class's."""
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
