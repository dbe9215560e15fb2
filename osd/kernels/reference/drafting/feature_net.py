"""The network of the `feature` drafter: one decoder layer over [token embedding ; target's last hidden state].

It belongs to the EAGLE family (Li et al. 2024, arXiv 2401.15077), with the reduced output vocabulary of FR-Spec (Zhao
et al. 2025, arXiv 2502.14856). Embedding and head are the target's and are not trained, so a version holds only this
layer and the ids of its vocabulary.

Entry t reads the embedding of token t+1 and the hidden state at position t. It yields a *feature*, an estimate of the
target's hidden state at position t+1, from which the head predicts token t+2. In a chain, features take the place of
hidden states that the target has not computed yet.

Shapes: B rows, T entries, H hidden size, N heads, D head size, R reduced vocabulary, V vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from osd.kernels.reference.rotary import rotate, rotation
from osd.kernels.reference.row_ops import rms_norm, silu_gate
from osd.records.shared_rows import SharedRows


@dataclass(frozen=True, slots=True)
class FeatureConfig:
    """The sizes of a `feature` drafter; part of every manifest."""

    kind: ClassVar[str] = "feature"

    hidden_size: int
    num_heads: int
    intermediate_size: int
    vocab_tokens: int
    """R: size of its vocabulary."""
    window_tokens: int
    """Entry t attends to entries t - window_tokens + 1 .. t."""
    target_vocab_tokens: int
    rope_theta: float = 10_000.0

    @classmethod
    def for_target(
        cls, hidden_size: int, target_vocab_tokens: int, vocab_tokens: int, window_tokens: int
    ) -> FeatureConfig:
        """Head size 64 where it fits, and an MLP three times as wide as the target's hidden state."""
        num_heads = next(n for n in range(max(1, hidden_size // 64), 0, -1) if hidden_size % (2 * n) == 0)
        return cls(
            hidden_size=hidden_size,
            num_heads=num_heads,
            intermediate_size=3 * hidden_size,
            vocab_tokens=min(vocab_tokens, target_vocab_tokens),
            window_tokens=window_tokens,
            target_vocab_tokens=target_vocab_tokens,
        )

    def as_dict(self) -> dict[str, Any]:
        """The configuration as stored in manifests."""
        return asdict(self)

    def network(self) -> FeatureNet:
        """A network of this shape, with weights to be loaded."""
        return FeatureNet(self)


class AttentionInputs(NamedTuple):
    """A pass's queries, keys and values, and the residual that attention's output is added to."""

    residual_BTH: Tensor
    query_BNTD: Tensor
    key_BNTD: Tensor
    value_BNTD: Tensor


class FeatureNet(nn.Module):
    """The trained layer, without attention: serving attends over a slot cache, training over a packed batch."""

    vocab_ids_R: Tensor

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.embedding_norm = nn.RMSNorm(size, eps=1e-6)
        self.hidden_norm = nn.RMSNorm(size, eps=1e-6)
        self.fuse = nn.Linear(2 * size, size, bias=False)
        self.attention_norm = nn.RMSNorm(size, eps=1e-6)
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.attention_out = nn.Linear(size, size, bias=False)
        self.mlp_norm = nn.RMSNorm(size, eps=1e-6)
        self.gate_up = nn.Linear(size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, size, bias=False)
        self.feature_norm = nn.RMSNorm(size, eps=1e-6)
        # In most BPE vocabularies low ids are early merges, hence frequent tokens: a good start before any traffic.
        self.register_buffer("vocab_ids_R", torch.arange(config.vocab_tokens))

    def reset_parameters(self, seed: int) -> None:
        """Seeded initial weights that train fast (measured: benchmarks/log.md).

        Initially the layer passes the hidden state through, which holds most of the information on the next tokens.
        """
        generator = torch.Generator().manual_seed(seed)
        small = {"fuse": 0.25, "attention_out": 0.2, "down": 0.2}
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                scale = small.get(name.split(".")[0], 1.0)
                nn.init.normal_(parameter, std=scale * parameter.shape[1] ** -0.5, generator=generator)
        with torch.no_grad():
            self.fuse.weight[:, self.config.hidden_size :].add_(torch.eye(self.config.hidden_size), alpha=2.0)
            self.feature_norm.weight.mul_(0.5)

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of positions, `[..., D]`."""
        return rotation(positions, self.config.hidden_size // self.config.num_heads, self.config.rope_theta, dtype)

    def enter(self, hidden_BTH: Tensor) -> Tensor:
        """What entries read of the target's hidden states: those themselves."""
        return hidden_BTH

    def attention_inputs(
        self, embedding_BTH: Tensor, hidden_BTH: Tensor, cos_BTD: Tensor, sin_BTD: Tensor
    ) -> AttentionInputs:
        """Rotated queries and keys, and values."""
        both = (normed(embedding_BTH, self.embedding_norm), normed(hidden_BTH, self.hidden_norm))
        residual_BTH = self.fuse(torch.cat(both, dim=-1))
        residual_BTH = residual_BTH.to(self.attention_norm.weight.dtype)  # under autocast the residual stays float32
        heads = self.qkv(normed(residual_BTH, self.attention_norm))
        heads = heads.view(*heads.shape[:2], 3 * self.config.num_heads, -1)
        turned, value = torch.split(heads, [2 * self.config.num_heads, self.config.num_heads], dim=2)
        dtype = heads.dtype
        turned = rotate(turned, cos_BTD[:, :, None].to(dtype), sin_BTD[:, :, None].to(dtype)).transpose(1, 2)
        query, key = turned.chunk(2, dim=1)
        return AttentionInputs(residual_BTH, query, key, value.transpose(1, 2))

    def feature(self, residual: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer after attention; returns the predicted hidden states. All are `[..., H]`."""
        mixed = residual + self.attention_out(attended)
        gated = silu_gate(self.gate_up(normed(mixed, self.mlp_norm)))
        return normed(mixed + self.down(gated), self.feature_norm)


def normed(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """`rms_norm` by a module."""
    assert norm.eps is not None
    return rms_norm(x, norm.weight, norm.eps)


def head_rows(shared: SharedRows, vocab_ids_R: Tensor) -> tuple[Tensor, Tensor | None]:
    """The head's rows (and biases) for a reduced vocabulary: [R, H], [R]."""
    bias = None if shared.head_bias_V is None else shared.head_bias_V[vocab_ids_R]
    return shared.head_VH[vocab_ids_R], bias
