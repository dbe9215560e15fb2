"""The engine that `benchmarks.shapes` measures: a random model and a drafter with a set acceptance rate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.contenders import Run
from benchmarks.machine import wait_for
from benchmarks.random_models import Shape, character_codec, random_llama
from benchmarks.synthetic_drafter import SyntheticDrafter
from osd.assembly.engine import make_engine, measure
from osd.assembly.kernels import backend_for
from osd.config.drafter import SpeculationConfig
from osd.config.settings import Config
from osd.config.target import EngineConfig
from osd.drafters.feature import FeatureDrafter
from osd.drafters.model import ModelDrafter
from osd.kernels.backend import Backend
from osd.kernels.reference.drafting.feature_net import FeatureConfig, FeatureNet
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.records.query import Request, SamplingParams, TokenDelta

_WINDOW_TOKENS = 256
"""Attention window of the `feature` drafter: osd's default."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The result of decoding one batch."""

    run: Run
    answers: list[list[int]]
    """Output token ids by query; a speculative answer ends with the last timed round."""
    num_accepted: int
    num_judged: int
    """Proposed tokens up to and including each round's first wrong one; accepted / judged is the set acceptance."""


@dataclass(slots=True)
class Comparison:
    """The sum of all runs of one batch size."""

    plain: list[Run] = field(default_factory=list)
    fast: list[Run] = field(default_factory=list)
    num_accepted: int = 0
    num_judged: int = 0
    num_answers: int = 0
    num_equal: int = 0
    """Number of speculative answers that equal the plain ones, token by token, as far as they go."""

    def add(self, decoded: Decoded, reference: list[list[int]]) -> None:
        """Add a speculative run."""
        self.num_accepted += decoded.num_accepted
        self.num_judged += decoded.num_judged
        self.num_answers += len(reference)
        pairs = zip(decoded.answers, reference, strict=True)
        self.num_equal += sum(answer == plain[: len(answer)] for answer, plain in pairs)


class ShapeBench:
    """An engine over a random model, with a drafter of a set acceptance rate.

    Args:
        model: of the given shape.
        shape: the model's sizes.
        drafter_shape: sizes of a small LM as drafter; None takes osd's `feature` drafter.
        max_rows: the largest batch.
        length: tokens proposed each round.
        acceptance: probability that a proposed token is right.
        context_tokens: length of every prompt.
        answer_tokens: length of every answer.
        seed: of the drafter's weights, and of which tokens are wrong.
        backend: what computes; None: the fastest on the model's device.
    """

    def __init__(
        self,
        model: Any,
        shape: Shape,
        *,
        drafter_shape: Shape | None = None,
        max_rows: int,
        length: int,
        acceptance: float,
        context_tokens: int,
        answer_tokens: int,
        seed: int = 0,
        backend: Backend | None = None,
    ) -> None:
        if answer_tokens < 4 * (length + 1):
            raise ValueError(f"answers of {answer_tokens} tokens leave no rounds to time; take {4 * (length + 1)}")
        self.length, self._answer_tokens = length, answer_tokens
        most_tokens = context_tokens + answer_tokens + length + 1
        target = Target(
            model,
            backend or backend_for(model.device),
            target_id="random",
            eos_ids=frozenset(),
            num_slots=max_rows,
            max_context_tokens=most_tokens,
            max_new_tokens=max(context_tokens, length + 1),
            max_round_tokens=length + 1,
        )
        drafter: Drafter
        if drafter_shape is None:
            drafter = feature_drafter(target, shape, max_rows, length, seed)
        else:
            drafter = ModelDrafter(
                random_llama(drafter_shape, target.lm.device, seed),
                target.backend,
                num_slots=max_rows,
                max_context_tokens=most_tokens,
                target_vocab_tokens=shape.vocab_tokens,
            )
        self.device = target.lm.device
        self.drafter = SyntheticDrafter(
            drafter,
            device=self.device,
            num_slots=max_rows,
            vocab_tokens=shape.vocab_tokens,
            acceptance=acceptance,
            seed=seed,
        )
        config = Config(
            # All prompts are prefilled in one step; otherwise the first rows would end before the last begin. The
            # prefix cache is off, so that repeated prompts are prefilled in full.
            engine=EngineConfig(
                max_slots=max_rows, prefill_chunk_tokens=max_rows * context_tokens, prefix_caching=False
            ),
            speculation=SpeculationConfig(max_length=length),
        )
        codec = character_codec(shape.vocab_tokens, most_tokens)
        costs = measure(config, target, [self.drafter])
        self.engine = make_engine(config, target, codec, [self.drafter], costs)

    def compare(self, prompts: Sequence[Sequence[int]], repeats: int) -> Comparison:
        """Alternate plain and speculative runs; the first one warms up and gives the drafter the answers."""
        reference = self.decode(prompts, 0).answers
        found = Comparison()
        for repeat in range(repeats + 1):
            self.drafter.remember(prompts, reference)
            plain, fast = self.decode(prompts, 0), self.decode(prompts, self.length)
            if repeat:
                found.plain.append(plain.run)
                found.fast.append(fast.run)
                found.add(fast, reference)
        return found

    def decode(self, prompts: Sequence[Sequence[int]], length: int) -> Decoded:
        """Answer prompts greedily, proposing `length` tokens each round."""
        params = SamplingParams(temperature=0.0, max_tokens=self._answer_tokens, ignore_eos=True)
        answers: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
        for name, prompt in zip(answers, prompts, strict=True):
            self.engine.submit(
                Request(request_id=name, prompt_ids=tuple(prompt), params=params, speculation_length=length)
            )
        _add(answers, self.engine.step())  # prefill of the target
        _add(answers, self.engine.step())  # the first round, with the drafter's prefill
        before, rounds, counts = dict(self.engine.counters.values), 0, []
        wait_for(self.device)
        started_s = time.perf_counter()
        while all(self._answer_tokens - len(ids) > length for ids in answers.values()):
            deltas = self.engine.step()
            _add(answers, deltas)
            counts += [len(delta.token_ids) for delta in deltas]
            rounds += 1
        wait_for(self.device)
        decode_s = time.perf_counter() - started_s
        after = dict(self.engine.counters.values)
        for name in answers:  # rounds with fewer rows or shorter proposals are not timed
            self.engine.cancel(name)
        run = Run.of_engine(before, after, decoded_tokens=sum(counts), decode_s=decode_s, rounds=rounds)
        num_judged = sum(min(count, length) for count in counts)
        return Decoded(run, list(answers.values()), int(after["accepted_total"] - before["accepted_total"]), num_judged)


def feature_config(shape: Shape) -> FeatureConfig:
    """The configuration of a `feature` drafter for a target of this shape."""
    return FeatureConfig.for_target(shape.hidden_size, shape.vocab_tokens, shape.draft_vocab_tokens, _WINDOW_TOKENS)


def feature_drafter(target: Target, shape: Shape, num_slots: int, length: int, seed: int) -> FeatureDrafter:
    """An untrained `feature` drafter."""
    config = feature_config(shape)
    drafter = FeatureDrafter(
        config,
        target.shared_rows(),
        target.backend,
        num_slots=num_slots,
        max_context_tokens=target.max_context_tokens,
        max_length=length,
    )
    device = target.lm.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        drafter.prepare(FeatureNet(config).state_dict(), 1)()
    return drafter


def _add(answers: dict[str, list[int]], deltas: list[TokenDelta]) -> None:
    for delta in deltas:
        answers[delta.request_id] += delta.token_ids
