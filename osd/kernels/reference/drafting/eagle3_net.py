"""The network of an EAGLE-3 head (Li et al. 2025, arXiv 2503.01840), with the tensor names of published heads.

Names and shapes are those of SpecForge's `LlamaForCausalLMEagle3`, which vLLM and SGLang load: `fc`, `midlayer.*`,
`norm`, `lm_head`. The vocabulary is `vocab_ids_R` instead of `d2t` and `t2d` (`osd.drafters.eagle3.layout` converts).

Entry t reads the embedding of token t + 1 and a hidden state. That is `fc` of the target's residual streams at
position t, as they enter several of its layers, side by side; or, in a chain, the layer's own output for entry t - 1,
before the final norm. `lm_head` of the normed output predicts token t + 2. Heads of EAGLE 3.1 have norms before `fc`,
and feed the normed output to the next entry.

Shapes: B rows, T entries, H hidden size, G the target's hidden size, J = G times the number of target layers read,
N query heads, M key/value heads, D head size, R reduced vocabulary, V vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osd.kernels.reference.drafting.feature_net import AttentionInputs, normed
from osd.kernels.reference.rotary import rotate, signed
from osd.records.shared_rows import SharedRows

ALL_ENTRIES = 1 << 30
"""`window_tokens` of a layer that attends to all entries before."""


@dataclass(frozen=True, slots=True)
class Eagle3Config:
    """The sizes of an `eagle3` drafter; part of every manifest."""

    kind: ClassVar[str] = "eagle3"

    hidden_size: int
    """H."""
    target_hidden_size: int
    """G."""
    target_layers: list[int]
    """The target's layers whose input residual streams are read, in this order; layer 0's input is the embedding."""
    num_heads: int
    num_key_heads: int
    head_size: int
    intermediate_size: int
    vocab_tokens: int
    """R."""
    target_vocab_tokens: int
    """V."""
    norm_eps: float
    rope: dict[str, Any]
    """Rotary settings in transformers' form (`rope_parameters`): `rope_type`, `rope_theta` and what the type needs."""
    max_positions: int
    """Positions that the head was made for (`max_position_embeddings`); scaled rotary settings refer to it."""
    norm_before_residual: bool = False
    """Whether the residual around attention is the normed hidden state instead of the hidden state."""
    norm_before_fc: bool = False
    """Whether the target's residual streams are normed together before `fc`."""
    fc_norm: bool = False
    """Whether each of them is normed before `fc`."""
    norm_output: bool = False
    """Whether the next entry of a chain reads the output after the final norm."""
    has_embedding: bool = False
    """Whether it has an embedding of its own; else it reads the target's."""
    window_tokens: int = ALL_ENTRIES
    """Entry t attends to entries t - window_tokens + 1 .. t."""

    @property
    def fused_size(self) -> int:
        """J: size of the hidden states that it reads from the target."""
        return len(self.target_layers) * self.target_hidden_size

    def as_dict(self) -> dict[str, Any]:
        """The configuration as stored in manifests."""
        return asdict(self)

    def network(self) -> Eagle3Net:
        """A network of this shape, with weights to be loaded."""
        return Eagle3Net(self)


def default_layers(num_layers: int) -> list[int]:
    """The target's layers whose inputs a head reads unless it names others: an early, a middle and a late one.

    These are vLLM's and SGLang's, as far as the target has them.
    """
    return [min(2, num_layers - 1), num_layers // 2, max(num_layers - 3, num_layers // 2)]


class FrozenRows(nn.Module):
    """An embedding that is never trained."""

    weight: Tensor

    def __init__(self, vocab_tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(vocab_tokens, hidden_size))


class Eagle3Net(nn.Module):
    """The head without attention: serving attends over a slot cache, training over a packed batch."""

    vocab_ids_R: Tensor

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        if config.norm_before_fc:
            self.input_norm = nn.RMSNorm(config.fused_size, eps=config.norm_eps)
        if config.fc_norm:
            norms = (nn.RMSNorm(config.target_hidden_size, eps=config.norm_eps) for _ in config.target_layers)
            self.fc_norm = nn.ModuleList(norms)
        self.fc = nn.Linear(config.fused_size, size, bias=False)
        self.midlayer = Eagle3Layer(config)
        self.norm = nn.RMSNorm(size, eps=config.norm_eps)
        self.lm_head = nn.Linear(size, config.vocab_tokens, bias=False)
        if config.has_embedding:
            self.embed_tokens = FrozenRows(config.target_vocab_tokens, size)
        self.register_buffer("vocab_ids_R", torch.arange(config.vocab_tokens))

    def reset_parameters(self, seed: int, head_RH: Tensor) -> None:
        """Seeded initial weights: the layer passes the last of the target's residual streams through.

        Args:
            seed: of the other weights, which are small and random.
            head_RH: the target's head for the vocabulary.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                scale = 0.2 if name.startswith(("fc", "midlayer.self_attn.o_proj", "midlayer.mlp.down_proj")) else 1.0
                nn.init.normal_(parameter, std=scale * parameter.shape[1] ** -0.5, generator=generator)
        with torch.no_grad():
            self.fc.weight[:, -self.config.target_hidden_size :] += torch.eye(self.config.hidden_size)
            self.lm_head.weight.copy_(head_RH)

    def embedding_VH(self, shared: SharedRows) -> Tensor:  # noqa: N802 - named by its shape
        """The embedding that it reads: its own, or else the target's."""
        return self.embed_tokens.weight if self.config.has_embedding else shared.embedding_VH

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of positions, `[..., D]`."""
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        config = self.config
        llama = LlamaConfig(
            hidden_size=config.num_heads * config.head_size,
            num_attention_heads=config.num_heads,
            head_dim=config.head_size,
            max_position_embeddings=config.max_positions,
            rope_parameters=dict(config.rope),
        )
        with positions.device:
            rotary = LlamaRotaryEmbedding(llama)
        like = torch.empty(0, dtype=torch.float32, device=positions.device)
        cos, sin = rotary(like, positions.reshape(1, -1))
        shape = (*positions.shape, config.head_size)
        return cos.reshape(shape).to(dtype), signed(sin.reshape(shape)).to(dtype)

    def enter(self, hidden_BTJ: Tensor) -> Tensor:
        """The hidden states `[B, T, H]` of entries for which the target's residual streams are known."""
        if self.config.norm_before_fc:
            hidden_BTJ = normed(hidden_BTJ, self.input_norm)
        if self.config.fc_norm:
            parts = []
            for part_BTG, norm in zip(hidden_BTJ.chunk(len(self.fc_norm), dim=-1), self.fc_norm, strict=True):
                assert isinstance(norm, nn.RMSNorm)
                parts.append(normed(part_BTG, norm))
            hidden_BTJ = torch.cat(parts, dim=-1)
        fused: Tensor = self.fc(hidden_BTJ)
        return fused

    def attention_inputs(
        self, embedding_BTH: Tensor, hidden_BTH: Tensor, cos_BTD: Tensor, sin_BTD: Tensor
    ) -> AttentionInputs:
        """Rotated queries `[B, N, T, D]`, rotated keys and values `[B, M, T, D]`, and the residual."""
        layer = self.midlayer
        hidden_BTH = hidden_BTH.to(layer.hidden_norm.weight.dtype)  # under autocast the residual stays float32
        normed_BTH = normed(hidden_BTH, layer.hidden_norm)
        both_BTF = torch.cat((normed(embedding_BTH, layer.input_layernorm), normed_BTH), dim=-1)
        query, key, value = (
            layer.self_attn[name](both_BTF).unflatten(-1, (-1, self.config.head_size)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        cos, sin = cos_BTD[:, None].to(query.dtype), sin_BTD[:, None].to(query.dtype)
        residual_BTH = normed_BTH if self.config.norm_before_residual else hidden_BTH
        return AttentionInputs(residual_BTH, rotate(query, cos, sin), rotate(key, cos, sin), value)

    def feature(self, residual: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer after attention: what the next entry of a chain reads, `[..., H]`."""
        layer = self.midlayer
        mixed = residual + layer.self_attn["o_proj"](attended)
        normed_mixed = normed(mixed, layer.post_attention_layernorm)
        gated = F.silu(layer.mlp["gate_proj"](normed_mixed)) * layer.mlp["up_proj"](normed_mixed)
        output: Tensor = mixed + layer.mlp["down_proj"](gated)
        return normed(output, self.norm) if self.config.norm_output else output

    def head(self, feature: Tensor) -> Tensor:
        """Logits `[..., R]` of what `feature` returns."""
        if not self.config.norm_output:
            feature = normed(feature, self.norm)
        return F.linear(feature.to(self.lm_head.weight.dtype), self.lm_head.weight)


class Eagle3Layer(nn.Module):
    """The parameters of the decoder layer; queries, keys and values read `[embedding ; hidden state]`, hence 2H."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        size, inner, eps = config.hidden_size, config.intermediate_size, config.norm_eps
        queries, keys = (num * config.head_size for num in (config.num_heads, config.num_key_heads))
        self.input_layernorm = nn.RMSNorm(size, eps=eps)
        self.hidden_norm = nn.RMSNorm(size, eps=eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(2 * size, queries, bias=False),
                "k_proj": nn.Linear(2 * size, keys, bias=False),
                "v_proj": nn.Linear(2 * size, keys, bias=False),
                "o_proj": nn.Linear(queries, size, bias=False),
            }
        )
        self.post_attention_layernorm = nn.RMSNorm(size, eps=eps)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(size, inner, bias=False),
                "up_proj": nn.Linear(size, inner, bias=False),
                "down_proj": nn.Linear(inner, size, bias=False),
            }
        )
