"""Fake outcome stream and weight store, and tiny students and outcomes, for the trainer's tests."""

# ruff: noqa: N803, N806

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from osd.config.trainer import TrainerConfig
from osd.kernels.reference.drafting.feature_net import FeatureConfig, FeatureNet
from osd.records.errors import OutcomeSinkError, WeightsRefusedError
from osd.records.events import EventKind
from osd.records.outcome import ACCEPTED, RECOVERED, Outcome, Sampling
from osd.records.outcome_arrays import pack_hidden, pack_top_k
from osd.records.shared_rows import SharedRows
from osd.records.version import Confirmed, WeightManifest
from trainer.losses.losses import LOSSES
from trainer.students.feature_student import FeatureStudent
from trainer.students.model_student import ModelStudent

# On a busy machine, two threads wait for one another longer than these tiny products take.
torch.set_num_threads(1)

VOCAB_TOKENS = 24
HIDDEN_SIZE = 16


class FakeSource:
    """A stream in memory that delivers unacknowledged outcomes again to a new reader."""

    def __init__(self) -> None:
        self.entries: dict[str, Outcome] = {}
        self.acked: list[str] = []
        self.down = False
        self._delivered: set[str] = set()

    def put(self, outcome: Outcome) -> None:
        self.entries[f"{len(self.entries)}-0"] = outcome

    def new_reader(self) -> None:
        """Act as for a restarted consumer."""
        self._delivered = set(self.acked)

    def read(self, max_count: int, block_ms: int) -> list[tuple[str, Outcome]]:
        self._check()
        waiting = [entry for entry in self.entries.items() if entry[0] not in self._delivered][:max_count]
        self._delivered |= {position for position, _ in waiting}
        return waiting

    def ack(self, positions: Sequence[str]) -> None:
        self._check()
        self.acked += [position for position in positions if position not in self.acked]

    def lag(self) -> int | None:
        return None if self.down else len(self.entries) - len(self._delivered)

    def _check(self) -> None:
        if self.down:
            raise OutcomeSinkError("the stream is down")


class FakeStore:
    """A weight store in memory."""

    def __init__(self) -> None:
        self.versions: dict[int, tuple[WeightManifest, dict[str, Tensor]]] = {}
        self.full = False
        self._latest = 0

    def publish(
        self,
        state: Mapping[str, Tensor],
        *,
        kind: str,
        config: Mapping[str, Any],
        parent: int | None,
        training_step: int = 0,
        stream_position: str = "",
        gate: Mapping[str, float] | None = None,
        note: str = "",
        fence: int = 0,
    ) -> WeightManifest:
        if self.full:
            raise OSError(28, "No space left on device")
        self._latest = len(self.versions) + 1
        manifest = WeightManifest(
            number=self._latest,
            kind=kind,
            config=dict(config),
            config_hash="",
            parent=parent,
            digest=f"of version {self._latest} in store {id(self)}",
            training_step=training_step,
            stream_position=stream_position,
            gate=dict(gate or {}),
            note=note,
            fence=fence,
        )
        self.versions[self._latest] = manifest, {name: tensor.clone() for name, tensor in state.items()}
        return manifest

    def latest(self) -> WeightManifest | None:
        return self.versions[self._latest][0] if self._latest else None

    def load(self, number: int) -> tuple[WeightManifest, dict[str, Tensor]]:
        if number not in self.versions:
            raise WeightsRefusedError(f"there is no version {number}")
        return self.versions[number]

    def list(self) -> builtins.list[WeightManifest]:
        return [manifest for manifest, _ in self.versions.values()]

    def roll_back(self, *, to: int | None = None, reason: str) -> WeightManifest:
        self._latest = self._latest - 1 if to is None else to
        return self.versions[self._latest][0]

    def reject(self, number: int, *, reason: str) -> WeightManifest:
        return self.roll_back(to=number - 1, reason=reason)

    def confirmed(self) -> Confirmed | None:
        return None

    def to_start_with(self) -> WeightManifest | None:
        return self.latest()


class Silent:
    """A publisher's reporter that nobody listens to."""

    def event(self, kind: EventKind, message: str, **data: float) -> None: ...

    def problem(self, message: str) -> None: ...


def shared_rows(vocab_tokens: int = VOCAB_TOKENS, hidden_size: int = HIDDEN_SIZE) -> SharedRows:
    generator = torch.Generator().manual_seed(7)
    return SharedRows(
        torch.randn(vocab_tokens, hidden_size, generator=generator),
        0.25 * torch.randn(vocab_tokens, hidden_size, generator=generator),
        None,
    )


def feature_student(
    loss: str = "forward_kl",
    *,
    unroll_steps: int = 2,
    vocab_tokens: int = VOCAB_TOKENS,
    window_tokens: int = 8,
    rejected_loss: str = "none",
) -> FeatureStudent:
    config = FeatureConfig(
        hidden_size=HIDDEN_SIZE,
        num_heads=2,
        intermediate_size=32,
        vocab_tokens=vocab_tokens,
        window_tokens=window_tokens,
        target_vocab_tokens=VOCAB_TOKENS,
    )
    net = FeatureNet(config)
    net.reset_parameters(0)
    return FeatureStudent(
        net,
        shared_rows(),
        loss=LOSSES[loss],
        unroll_steps=unroll_steps,
        rejected_loss=LOSSES.get(rejected_loss),
    )


def plain_random(student: FeatureStudent) -> None:
    """Give it plain random weights: those it starts with pass the hidden state on, whatever token was read."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in student.net.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.ones_(parameter)
        else:
            scale = 0.2 if name.startswith(("attention_out", "down")) else 1.0
            torch.nn.init.normal_(parameter, std=scale * parameter.shape[1] ** -0.5, generator=generator)


def tiny_llama(*, tie: bool = True, vocab_tokens: int = VOCAB_TOKENS) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_tokens,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tie,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def model_student(loss: str = "forward_kl", *, tie: bool = True) -> ModelStudent:
    return ModelStudent(tiny_llama(tie=tie), loss=LOSSES[loss], depths=2)


def make_outcome(
    request_id: str = "r-1",
    *,
    prompt_ids: Sequence[int] = (1, 2, 3),
    output_ids: Sequence[int] = (4, 5, 6, 7),
    kinds: bytes | None = None,
    log_probs_OV: Tensor | None = None,
    top_k: int = VOCAB_TOKENS,
    hidden_start: int = 0,
    hidden_NH: Tensor | None = None,
    temperature: float = 0.0,
    domain: str = "default",
    target_id: str = "tiny",
) -> Outcome:
    """One query, by a target that is nearly certain of every output token unless its distribution is given."""
    num_outputs, num_hidden = len(output_ids), len(prompt_ids) + len(output_ids) - 1 - hidden_start
    generator = torch.Generator().manual_seed(sum(prompt_ids) + len(output_ids))
    if log_probs_OV is None:
        logits_OV = torch.zeros(num_outputs, VOCAB_TOKENS)
        logits_OV[torch.arange(num_outputs), torch.tensor(output_ids)] = 8.0
        log_probs_OV = logits_OV.log_softmax(1)
    if hidden_NH is None:
        hidden_NH = torch.randn(num_hidden, HIDDEN_SIZE, generator=generator)
    top = log_probs_OV.topk(top_k, dim=1)
    top_ids, top_logprobs, packed_top_k = pack_top_k(top.indices, top.values)
    return Outcome(
        request_id=request_id,
        domain=domain,
        target_id=target_id,
        drafter_kind="feature",
        created_at_s=1.7e9,
        prompt_ids=tuple(prompt_ids),
        output_ids=tuple(output_ids),
        output_kinds=kinds or bytes([RECOVERED] + [ACCEPTED] * (num_outputs - 1)),
        rounds=(),
        top_k=packed_top_k,
        top_ids=top_ids,
        top_logprobs=top_logprobs,
        hidden_size=hidden_NH.shape[1],
        hidden_start=hidden_start,
        hidden=pack_hidden(hidden_NH),
        sampling=Sampling(temperature=temperature),
    )


def learnable_outcome(number: int, hidden_size: int = HIDDEN_SIZE) -> Outcome:
    """An outcome of traffic in which every token is followed by the next id, which is easy to learn."""
    start = number % 8
    ids = [(start + step) % 12 for step in range(10)]
    hidden_NH = torch.randn(9, hidden_size, generator=torch.Generator().manual_seed(sum(ids[:3]) + 7))
    return make_outcome(f"q-{number}", prompt_ids=ids[:3], output_ids=ids[3:], hidden_NH=hidden_NH)


def trainer_config(**values: Any) -> TrainerConfig:
    return TrainerConfig.model_validate(
        {
            "min_records": 2,
            "batch_tokens": 64,
            "warmup_steps": 0,
            "learning_rate": 5e-3,
            "gate_every_steps": 10,
            "held_out_share": 0.25,
            "passes": 1e6,
            **values,
        }
    )
