"""Optimizers by name."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from osd.config.settings import ConfigError
from trainer.optimization.optimizers import create_optimizer, warmed_up


def _descend(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int) -> Tensor:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.stack([(parameter**2).sum() for parameter in parameters]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return loss.detach()


def _parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(4, 3, generator=generator)), nn.Parameter(torch.randn(3, generator=generator))]


@pytest.mark.parametrize(
    "name", ["AdamW", "SGD", "NAdam", "AdamP", "RAdam", "Lamb", "DiffGrad", "Yogi", "Lookahead", "Muon"]
)
def test_every_kind_descends_and_its_state_can_be_restored(name: str) -> None:
    parameters = _parameters()
    optimizer = create_optimizer(name, parameters, 1e-2, {})
    first, last = _descend(optimizer, parameters, 1), _descend(optimizer, parameters, 30)
    assert last < first
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    again = create_optimizer(name, copies, 1e-2, {})
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _descend(optimizer, parameters, 7)
    _descend(again, copies, 7)
    for parameter, other in zip(parameters, copies, strict=True):
        assert torch.equal(parameter, other)


def test_options_reach_the_optimizer() -> None:
    optimizer = create_optimizer("AdamP", _parameters(), 1e-2, {"weight_decay": 0.5, "betas": [0.8, 0.9]})
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert tuple(optimizer.param_groups[0]["betas"]) == (0.8, 0.9)
    assert optimizer.param_groups[0]["lr"] == 1e-2


def test_lookahead_goes_back_part_of_the_way_every_k_steps() -> None:
    """Against AdamW alone: after k steps the weights are the mean of start and AdamW's."""
    slow, fast = _parameters(), _parameters()
    start = [parameter.detach().clone() for parameter in slow]
    lookahead = create_optimizer("Lookahead", slow, 1e-2, {"k": 3, "alpha": 0.5})
    _descend(lookahead, slow, 3)
    _descend(torch.optim.AdamW(fast, 1e-2), fast, 3)
    for before, ours, theirs in zip(start, slow, fast, strict=True):
        torch.testing.assert_close(ours.detach(), (before + theirs.detach()) / 2)


def test_muon_turns_matrices_by_equal_amounts_and_leaves_vectors_to_adamw() -> None:
    """Its update of a matrix has singular values that are about the same, and AdamW's size."""
    ours, theirs = _parameters(), _parameters()
    start = ours[0].detach().clone()
    _descend(create_optimizer("Muon", ours, 1e-2, {"weight_decay": 0.0}), ours, 1)
    _descend(torch.optim.AdamW(theirs, 1e-2, weight_decay=0.0), theirs, 1)
    assert torch.equal(ours[1], theirs[1])
    values = torch.linalg.svdvals(ours[0].detach() - start)
    assert values.min() > 0.5 * values.max()
    assert float((ours[0].detach() - start).square().mean().sqrt()) == pytest.approx(0.2 * 1e-2, rel=0.3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw", {}, "'adamw' is unknown; did you mean AdamW"),
        ("AdamPP", {}, "did you mean .*AdamP"),
        ("Quux", {}, "did you mean AdamW, AdamP, RAdam"),
        ("LBFGS", {}, "cannot be used: it needs to evaluate the loss several times"),
        ("Adahessian", {}, "cannot be used: it needs second derivatives"),
        ("AdamW", {"weigth_decay": 0.1}, "'weigth_decay' is no option of AdamW; did you mean weight_decay"),
        ("AdamW", {"zzz": 0.1}, "it has .*betas"),
        ("AdamW", {"lr": 0.1}, "set trainer.learning_rate instead"),
        ("AdamW", {"eps": -1.0}, "trainer.optimizer_options do not fit AdamW: Invalid epsilon"),
        ("Lookahead", {"k": 0}, "do not fit Lookahead"),
    ],
)
def test_refusals_name_the_setting_and_the_way_out(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        create_optimizer(name, _parameters(), 1e-3, options)
    assert re.match(r"trainer\.optimizer", str(caught.value))


def test_warm_up_rises_and_stays() -> None:
    rates = [warmed_up(1.0, step, 4) for step in range(7)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    assert warmed_up(0.5, 0, 0) == 0.5
