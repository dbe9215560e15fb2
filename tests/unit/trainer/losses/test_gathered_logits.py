"""Named logits against the same in plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.losses import gathered_logits
from trainer.losses.gathered_logits import LOG_ZERO, gather_logits

N, R, K = 23, 40, 5


def _plain(logits_NR: Tensor, slots_NK: Tensor, slots_N1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    padded_NS = F.pad(logits_NR.float(), (0, 1), value=LOG_ZERO)
    rest_NS = padded_NS.scatter(1, slots_NK, -torch.inf)
    return padded_NS.gather(1, slots_NK), padded_NS.gather(1, slots_N1), rest_NS[:, :R].logsumexp(1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows_at_once", [1, 4, 100])
def test_values_and_gradients_are_those_of_plain_torch(
    dtype: torch.dtype, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathered_logits, "BUFFER_FLOATS", rows_at_once * R)
    generator = torch.Generator().manual_seed(rows_at_once)
    logits_NR = (3 * torch.randn(N, R, generator=generator)).to(dtype)
    slots_NK = torch.stack([torch.randperm(R, generator=generator)[:K] for _ in range(N)])
    slots_NK[::3, 1:3] = R  # a slot of none, twice
    slots_N1 = torch.randint(R + 1, (N, 1), generator=generator)
    slots_N1[1] = slots_NK[1, :1]  # named both ways
    weights = [torch.randn(N, size, generator=generator) for size in (K, 1, 1)]

    gradients = []
    outputs = []
    for function in (gather_logits, _plain):
        given_NR = logits_NR.clone().requires_grad_()
        outputs.append(function(given_NR, slots_NK, slots_N1))
        total = torch.cat([weight * output for weight, output in zip(weights, outputs[-1], strict=True)], dim=1).sum()
        gradients.append(torch.autograd.grad(total, given_NR)[0])
    for ours, plain in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, plain)
    assert gradients[0].dtype == dtype
    torch.testing.assert_close(*gradients)


def test_no_positions_are_no_error() -> None:
    logits_NR = torch.zeros((0, R), requires_grad=True)
    slots = torch.zeros((0, 1), dtype=torch.long)
    outputs = gather_logits(logits_NR, slots.expand(0, K), slots)
    assert [output.shape for output in outputs] == [(0, K), (0, 1), (0, 1)]
    (gradient,) = torch.autograd.grad(torch.cat(outputs, dim=1).sum(), logits_NR)
    assert gradient.shape == (0, R)
