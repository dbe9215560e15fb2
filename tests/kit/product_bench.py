"""Compares products of few rows with torch's in float32, with the operations that are fused with them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from osd.kernels.reference.projections import ByteCodes, DenseProjection
from osd.kernels.reference.row_ops import Norm


class ProductBench:
    """Random rows and weights of one size."""

    def __init__(
        self, dtype: torch.dtype, *, num_rows: int, num_inputs: int, num_outputs: int, device: str = "cpu"
    ) -> None:
        self.generator = torch.Generator().manual_seed(num_rows)
        self.dtype, self.device = dtype, device
        self.tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
        self.rows, self.weight = self.draw(num_rows, num_inputs), self.draw(num_outputs, num_inputs)
        self.weight *= num_inputs**-0.5
        self.bias, self.residual = self.draw(num_outputs), self.draw(num_rows, num_outputs)
        self.norm, self.next_norm = self.draw(num_inputs).abs() + 0.5, self.draw(num_outputs).abs() + 0.5

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def check(self, got: Tensor, expected: Tensor) -> None:
        """They differ by no more than rounding explains, and no element is unset."""
        gap = (got.float() - expected.float()).norm() / expected.float().norm()
        assert got.shape == expected.shape and gap < self.tolerance, float(gap)

    def check_products(self, *, coded: bool) -> None:
        """Every form of product, and a chain of two; with codes, the reference uses the dequantised weights."""
        from osd.kernels.gpu.product import product, product_onto
        from osd.kernels.gpu.rows import enter

        rows, weight, bias = self.rows.float(), self.weight.float(), self.bias.float()
        codes = ByteCodes.of(self.weight) if coded else None
        if codes is not None:
            rounded = codes.codes_OI * codes.steps_O[:, None]
            assert ((rounded - weight).abs() <= 0.51 * codes.steps_O[:, None]).all()
            weight = rounded
        plain, biased = (DenseProjection(self.weight, one, codes) for one in (None, self.bias))
        self.check(product(self.rows, plain), rows @ weight.T)
        self.check(product(self.rows, biased), F.linear(rows, weight, bias))
        stream = enter(self.rows, self.norm)
        normed = F.rms_norm(rows, rows.shape[-1:], self.norm.float(), 1e-5)
        scaled, squares = stream.scaled_RH, stream.squares_TR
        projected = product(scaled, biased, squares_TR=squares, eps=1e-5)
        self.check(projected, F.linear(normed, weight, bias))
        gate, up = (normed @ weight.T).chunk(2, dim=-1)
        gated = product(scaled, plain, squares_TR=squares, eps=1e-5, is_gated=True)
        self.check(gated, F.silu(gate) * up)
        self.check(product_onto(self.rows, plain, None, self.next_norm).rows_RH, rows @ weight.T)
        added = product_onto(self.rows, biased, self.residual, self.next_norm)
        kept = F.linear(rows, weight, bias) + self.residual.float()
        self.check(added.rows_RH, kept)
        self.check(added.scaled_RH, kept * self.next_norm.float())
        self.check(added.squares_TR.sum(dim=0)[: len(rows)], kept.square().sum(dim=1))
        after = self.draw(24, len(self.weight))
        next_normed = F.rms_norm(kept, kept.shape[-1:], self.next_norm.float(), 1e-6)
        projected = product(added.scaled_RH, DenseProjection(after), squares_TR=added.squares_TR, eps=1e-6)
        self.check(projected, next_normed @ after.float().T)

    def check_rows(self) -> None:
        """The operations between products when rows are many."""
        from osd.kernels.gpu.rows import added_and_normed, gated, joined, normed

        rows, norm, size = self.rows.float(), self.norm.float(), self.rows.shape[-1:]
        self.check(normed(self.rows, self.norm, 1e-5), F.rms_norm(rows, size, norm, 1e-5))
        kept, of_kept = added_and_normed(self.rows, self.rows * 2, self.norm, 1e-5)
        self.check(kept, 3 * rows)
        self.check(of_kept, F.rms_norm(3 * rows, size, norm, 1e-5))
        gate, up = rows.chunk(2, dim=-1)
        self.check(gated(self.rows), F.silu(gate) * up)
        embedding, tokens = self.draw(50, *size), torch.arange(len(rows), device=self.device) * 7 % 50
        halves = joined(tokens, embedding, self.rows, (Norm(self.norm, 1e-5), Norm(self.norm + 1, 1e-6)))
        expected = (
            F.rms_norm(embedding[tokens].float(), size, norm, 1e-5),
            F.rms_norm(rows, size, norm + 1, 1e-6),
        )
        self.check(halves, torch.cat(expected, dim=1))
