"""A tiny engine for tests of the core: random models made in memory, a tokenizer of characters, a recorder of lists."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from osd.assembly import engine as assembly
from osd.config.drafter import DrafterConfig, SpeculationConfig
from osd.config.outcomes import OutcomesConfig
from osd.config.settings import Config
from osd.config.target import EngineConfig
from osd.config.versions import SwapConfig
from osd.drafters.feature import FeatureDrafter
from osd.drafters.model import ModelDrafter
from osd.drafters.weights import model_state
from osd.engine.engine import Engine
from osd.kernels.backend import Backend
from osd.kernels.reference.drafting.eagle3_net import Eagle3Config
from osd.kernels.reference.drafting.feature_net import FeatureConfig, FeatureNet
from osd.models.target import Target
from osd.ports.drafter import Drafter, Swappable
from osd.ports.lookup import Lookup
from osd.ports.outcomes import OutcomeRecorder
from osd.records.drafter_id import DrafterId
from osd.records.events import Event
from osd.records.outcome import Outcome
from osd.records.query import FinishReason, QueryStats, Request, TokenDelta, TokenLogprob
from osd.records.rules import AcceptRule
from osd.records.version import WeightManifest
from osd.speculation.cost import ArmCosts, CostCurve, Costs
from osd.text.codec import TextCodec
from tests.kit.backends import fastest

VOCAB_TOKENS = 24
CONTEXT_TOKENS = 64


class CharTokenizer:
    """Token id i is the i-th letter; nothing is special."""

    chat_template: Any = None
    eos_token_id = None

    def __init__(self, vocab_tokens: int = VOCAB_TOKENS) -> None:
        self._vocab_tokens = vocab_tokens

    def __len__(self) -> int:
        return self._vocab_tokens

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(char) - ord("a") for char in text]}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(ord("a") + token) for token in ids)


def char_codec(vocab_tokens: int = VOCAB_TOKENS) -> TextCodec:
    return TextCodec(CharTokenizer(vocab_tokens), model_id="tiny", context_tokens=CONTEXT_TOKENS)


def tiny_llama(
    seed: int = 0,
    *,
    vocab_tokens: int = VOCAB_TOKENS,
    sharpness: float = 1.0,
    layers: int = 2,
    intermediate_size: int = 48,
) -> Any:
    """Random weights; `sharpness` scales the head, so that the distributions are not all but flat."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_tokens,
                hidden_size=32,
                intermediate_size=intermediate_size,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=4 * CONTEXT_TOKENS,
                initializer_range=0.3,
                attn_implementation="sdpa",
                bos_token_id=None,
                eos_token_id=None,
            )
        )
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    return model.eval().requires_grad_(False)


def perturbed(model: Any, noise: float, seed: int = 1) -> Any:
    """A copy whose weights are off by `noise` of their own scale."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        spread = parameter.std() if parameter.numel() > 1 else parameter.abs()
        parameter.data += noise * spread * torch.randn(parameter.shape, generator=generator)
    return other


def make_target(
    model: Any,
    *,
    backend: Backend | None = None,
    eos_ids: Iterable[int] = (),
    num_slots: int = 4,
    context_tokens: int = CONTEXT_TOKENS,
    is_int4: bool = False,
    hidden_layers: Sequence[int] = (),
) -> Target:
    """Serves a copy: a target keeps its model's weights in a layout of its own. By the fastest back end, by default."""
    return Target(
        copy.deepcopy(model),
        backend or fastest(model.device),
        target_id="tiny",
        eos_ids=frozenset(eos_ids),
        num_slots=num_slots,
        max_context_tokens=context_tokens,
        max_new_tokens=max(context_tokens, 32),
        max_round_tokens=5,
        is_int4=is_int4,
        hidden_layers=hidden_layers,
    )


def model_drafter(
    model: Any, target: Target, *, version: int = 1, backend: Backend | None = None, name: str = "model"
) -> ModelDrafter:
    """Serves `model` (a copy of it is wise: a SlotModel hooks into its model) as the drafter."""
    drafter = ModelDrafter(
        model,
        backend or target.backend,
        num_slots=target.tokens_SL.shape[0],
        max_context_tokens=target.max_context_tokens,
        target_vocab_tokens=target.lm.vocab_tokens,
    )
    drafter.id = DrafterId(name, version)
    return drafter


def feature_drafter(
    target: Target,
    *,
    seed: int = 0,
    vocab_tokens: int = 16,
    window_tokens: int = 8,
    version: int = 1,
    backend: Backend | None = None,
    name: str = "feature",
) -> FeatureDrafter:
    """A random `feature` drafter with a reduced vocabulary."""
    config = FeatureConfig.for_target(target.lm.hidden_size, target.lm.vocab_tokens, vocab_tokens, window_tokens)
    drafter = FeatureDrafter(
        config,
        target.shared_rows(),
        backend or target.backend,
        num_slots=target.tokens_SL.shape[0],
        max_context_tokens=target.max_context_tokens,
        max_length=4,
        name=name,
    )
    drafter.prepare(feature_state(config, seed), version)()
    return drafter


def feature_state(config: FeatureConfig | Eagle3Config, seed: int) -> dict[str, Tensor]:
    assert isinstance(config, FeatureConfig)
    net = FeatureNet(config)
    net.reset_parameters(seed)
    return {name: tensor.detach() for name, tensor in net.state_dict().items()}


def manifest_of(number: int, kind: str = "model", gate: Mapping[str, float] | None = None) -> WeightManifest:
    return WeightManifest(
        number=number, kind=kind, config={}, config_hash="", parent=None, digest="", gate=dict(gate or {})
    )


def swap(engine: Engine, manifest: WeightManifest, state: Mapping[str, Tensor]) -> None:
    """Another version of the first drafter from here on."""
    drafter = engine.policy.arms[0].drafter
    assert isinstance(drafter, Swappable)
    engine.load_drafter(drafter.id.name, manifest, drafter.prepare(state, manifest.number))


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model_state(model).items()}


class ListRecorder:
    """Makes every outcome at once, in the engine's thread."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}

    def takes(self, request_id: str) -> bool:
        return True

    def record(self, make: Callable[[], Outcome]) -> None:
        outcome = make()
        self.outcomes[outcome.request_id] = outcome

    def counters(self) -> dict[str, int]:
        return {"outcomes_total": len(self.outcomes)}


def make_engine(
    target: Target,
    *drafters: Drafter | None,
    fixed_length: int | None = 3,
    max_length: int = 4,
    chunk_tokens: int = 32,
    prefix_caching: bool = True,
    max_waiting: int = 10_000,
    top_k: int = 8,
    prompt_hidden_tokens: int = 4,
    rejected_top_k: int = 0,
    swap: SwapConfig | None = None,
    recorder: OutcomeRecorder | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    codec: TextCodec | None = None,
    calibrated: bool = False,
    accept_rule: AcceptRule = "token",
    lookup: Lookup | None = None,
    max_domains: int = 0,
) -> Engine:
    """An engine whose costs are made up unless `calibrated`."""
    config = Config(
        engine=EngineConfig(
            max_slots=target.tokens_SL.shape[0],
            max_waiting=max_waiting,
            prefill_chunk_tokens=chunk_tokens,
            prefix_caching=prefix_caching,
        ),
        speculation=SpeculationConfig(max_length=max_length, fixed_length=fixed_length, accept_rule=accept_rule),
        outcomes=OutcomesConfig(top_k=top_k, prompt_hidden_tokens=prompt_hidden_tokens, rejected_top_k=rejected_top_k),
        swap=swap or SwapConfig(),
        drafter=DrafterConfig(max_domains=max_domains),
    )
    present = [drafter for drafter in drafters if drafter is not None]
    costs = assembly.measure(config, target, present) if calibrated else made_up_costs(len(present))
    codec = codec or char_codec(target.lm.vocab_tokens)
    return assembly.make_engine(
        config, target, codec, present, costs, lookup=lookup, recorder=recorder, on_event=on_event
    )


def made_up_costs(num_drafters: int = 1) -> Costs:
    """A pass 1 ms, a token drafted 0.1 ms, one read 1 us."""
    return Costs(
        CostCurve({(1, 1): 1.0}),
        tuple(
            ArmCosts(draft=CostCurve({(1, 1): 0.1, (1, 2): 0.2}), reading=CostCurve({(1, 1): 0.001, (1, 2): 0.002}))
            for _ in range(num_drafters)
        ),
    )


@dataclass
class Answer:
    """Everything that was delivered for one query."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    stats: QueryStats | None = None

    def add(self, delta: TokenDelta) -> None:
        assert self.finish_reason is None, "a delta after the last one"
        self.ids += delta.token_ids
        self.text += delta.text
        self.pieces.append(delta.text)
        self.logprobs += delta.logprobs
        self.finish_reason, self.error, self.stats = delta.finish_reason, delta.error, delta.stats


class Answers(dict[str, Answer]):
    """Answers by request id, put together from deltas."""

    def add(self, deltas: Iterable[TokenDelta]) -> None:
        for delta in deltas:
            self.setdefault(delta.request_id, Answer()).add(delta)


def run(engine: Engine, requests: Iterable[Request] = (), answers: Answers | None = None) -> Answers:
    """Submit, and step until nothing is left."""
    answers = Answers() if answers is None else answers
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        answers.add(engine.step())
    return answers


@torch.no_grad()
def plain_logits(model: Any, ids: Sequence[int]) -> Tensor:
    """The plain model's float32 logits after each of these tokens, `[len(ids), V]`: no cache, one row."""
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()  # type: ignore[no-any-return]


@torch.no_grad()
def plain_hidden(model: Any, ids: Sequence[int]) -> Tensor:
    """The plain model's last hidden states at these tokens, `[len(ids), H]`: no cache, one row."""
    return model.get_decoder()(input_ids=torch.tensor([list(ids)]), use_cache=False)[0][0]  # type: ignore[no-any-return]


def plain_greedy(model: Any, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """What transformers' own generate() answers, greedily."""
    ids = torch.tensor([list(prompt)])
    with torch.no_grad():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()  # type: ignore[no-any-return]
