"""Decoding speed by a model's shape, with random weights and a drafter of a set acceptance: nothing is downloaded.

For each batch size osd plain and speculative take turns on one engine. Timed are the rounds in which every row decodes
and proposes its full length. With `--json` the last line of stdout is one JSON object.

    python -m benchmarks.shapes --shape 1b --batch 1 4 16 64 --length 4 --acceptance 0.72
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import Run
from benchmarks.decode import Total, theoretical_speedup
from benchmarks.machine import copy_bytes_per_s, describe_machine, wait_for
from benchmarks.random_models import SHAPES, Shape, character_codec, random_llama, weight_bytes
from benchmarks.synthetic_drafter import SyntheticDrafter
from osd.config import Config, EngineConfig, SpeculationConfig
from osd.drafters.feature import FeatureDrafter
from osd.drafters.feature_net import FeatureConfig, FeatureNet
from osd.engine import Engine
from osd.models.loading import choose_device
from osd.models.target import Target
from osd.types import Request, SamplingParams, TokenDelta

_WINDOW_TOKENS = 256
"""How far back the drafter looks: osd's default."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One batch of answers."""

    run: Run
    answers: list[list[int]]
    """A speculative one ends with the timed rounds."""
    num_accepted: int
    num_judged: int
    """Proposed tokens up to each round's first wrong one; accepted / judged is what the drafter's acceptance sets."""


@dataclass(slots=True)
class Comparison:
    """All runs of one batch size."""

    plain: list[Run] = field(default_factory=list)
    fast: list[Run] = field(default_factory=list)
    num_accepted: int = 0
    num_judged: int = 0
    num_answers: int = 0
    num_equal: int = 0
    """Speculative answers that are the plain ones, token by token, as far as they go."""

    def add(self, decoded: Decoded, reference: list[list[int]]) -> None:
        """Count a speculative run in."""
        self.num_accepted += decoded.num_accepted
        self.num_judged += decoded.num_judged
        self.num_answers += len(reference)
        pairs = zip(decoded.answers, reference, strict=True)
        self.num_equal += sum(answer == plain[: len(answer)] for answer, plain in pairs)


class ShapeBench:
    """An engine over a random model, with a drafter of a set acceptance.

    Args:
        model: of that shape.
        shape: its sizes.
        max_rows: the largest batch.
        length: tokens proposed each round.
        acceptance: the drafter's.
        context_tokens: length of every prompt.
        answer_tokens: length of every answer.
        seed: of the drafter's weights, and of the spoiling.
    """

    def __init__(
        self,
        model: Any,
        shape: Shape,
        *,
        max_rows: int,
        length: int,
        acceptance: float,
        context_tokens: int,
        answer_tokens: int,
        seed: int = 0,
    ) -> None:
        if answer_tokens < 4 * (length + 1):
            raise ValueError(f"answers of {answer_tokens} tokens leave no rounds to time; take {4 * (length + 1)}")
        self.length, self._answer_tokens = length, answer_tokens
        most_tokens = context_tokens + answer_tokens + length + 1
        target = Target(
            model,
            target_id="random",
            eos_ids=frozenset(),
            num_slots=max_rows,
            max_context_tokens=most_tokens,
            max_new_tokens=max(context_tokens, length + 1),
            max_round_tokens=length + 1,
        )
        sizes = shape.hidden_size, shape.vocab_tokens, shape.draft_vocab_tokens
        drafter_config = FeatureConfig.for_target(*sizes, _WINDOW_TOKENS)
        drafter = FeatureDrafter(
            drafter_config,
            target.shared_rows(),
            num_slots=max_rows,
            max_context_tokens=most_tokens,
            max_length=length,
        )
        net = FeatureNet(drafter_config)
        net.reset_parameters(seed)
        drafter.prepare(net.state_dict(), 1)()
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
            # All prompts are read in one step, or the first rows would end before the last begin.
            engine=EngineConfig(max_slots=max_rows, prefill_chunk_tokens=max_rows * context_tokens),
            speculation=SpeculationConfig(max_length=length),
        )
        self.engine = Engine(config, target, character_codec(shape.vocab_tokens, most_tokens), self.drafter)

    def compare(self, prompts: Sequence[Sequence[int]], repeats: int) -> Comparison:
        """Plain and speculative in turn; the first turn warms up, and tells the drafter the answers."""
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
        _add(answers, self.engine.step())  # reads all prompts; the first round comes with it
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
        for name in answers:  # with fewer rows, or fewer tokens to propose, rounds are others
            self.engine.cancel(name)
        run = Run.of_engine(before, after, decoded_tokens=sum(counts), decode_s=decode_s, rounds=rounds)
        num_judged = sum(min(count, length) for count in counts)
        return Decoded(run, list(answers.values()), int(after["accepted_total"] - before["accepted_total"]), num_judged)


def generate_tokens_per_s(model: Any, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
    """Of transformers' `generate`: the prompt's reading and first token are measured alone, and taken off."""
    ids_BL = torch.tensor([list(prompt) for prompt in prompts], device=model.device)

    def timed_s(num_new: int) -> float:
        started_s = time.perf_counter()
        model.generate(
            input_ids=ids_BL,
            attention_mask=torch.ones_like(ids_BL),
            do_sample=False,
            max_new_tokens=num_new,
            pad_token_id=0,
        )
        wait_for(model.device)
        return time.perf_counter() - started_s

    timed_s(2)  # warms up
    first_s = timed_s(1)
    return len(prompts) * (num_tokens - 1) / (timed_s(num_tokens) - first_s)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every batch size."""
    args = _arguments(arguments)
    console = Console(stderr=args.json)
    console.width = max(console.width, 128)  # a log has no width of its own
    torch.set_num_threads(args.threads or psutil.cpu_count(logical=False) or 1)
    shape, device = SHAPES[args.shape], choose_device(args.device)
    console.print(f"a random model of shape {args.shape}, on {device}")
    draw = random.Random(args.seed)
    prompts = [[draw.randrange(shape.vocab_tokens) for _ in range(args.context)] for _ in range(max(args.batch))]
    model = random_llama(shape, device, args.seed)
    read_bytes, bandwidth = weight_bytes(model), copy_bytes_per_s(device)
    # Before the engine, which brings the model's weights into a layout of its own.
    generate = {batch: generate_tokens_per_s(model, prompts[:batch], args.tokens) for batch in args.batch}
    bench = ShapeBench(
        model,
        shape,
        max_rows=max(args.batch),
        length=args.length,
        acceptance=args.acceptance,
        context_tokens=args.context,
        answer_tokens=args.tokens,
        seed=args.seed,
    )
    report = {
        "benchmark": "shapes",
        "at": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "device": str(device),
        "shape": args.shape,
        "dtype": str(shape.dtype).removeprefix("torch."),
        "weights": "random",
        "speculation_length": args.length,
        "acceptance_asked": args.acceptance,
        "context_tokens": args.context,
        "max_tokens": args.tokens,
        "repeats": args.repeats,
        "weight_bytes": read_bytes,
        "copy_bytes_per_s": round(bandwidth),
        "batches": {},
    }
    for batch in args.batch:
        comparison = bench.compare(prompts[:batch], args.repeats)
        report["batches"][str(batch)] = _figures(comparison, generate[batch], read_bytes, bandwidth)
    _print(console, report)
    if args.json:
        print(json.dumps(report))


def _figures(found: Comparison, generate: float, read_bytes: int, bandwidth: float) -> dict[str, Any]:
    plain, fast = Total({"": found.plain}), Total({"": found.fast})
    step_ms = plain.ms_a_round("decode_s")
    speedup, theory = fast.tokens_per_s / plain.tokens_per_s, theoretical_speedup(plain, fast)
    return {
        "plain_tokens_per_s": round(plain.tokens_per_s, 2),
        "plain_step_ms": round(step_ms, 3),
        "plain_host_ms": round(plain.host_ms, 3),
        "weight_bytes_per_s": round(read_bytes / step_ms * 1e3),
        "share_of_copy_bandwidth": round(read_bytes / step_ms * 1e3 / bandwidth, 3),
        "speculative_tokens_per_s": round(fast.tokens_per_s, 2),
        "ms_a_round": {
            **{part: round(fast.ms_a_round(f"{part}_s"), 3) for part in ("decode", "draft", "verify")},
            "host": round(fast.host_ms, 3),
        },
        "acceptance": round(found.num_accepted / found.num_judged, 4),
        "judged_tokens": found.num_judged,
        "acceptance_length": round(fast.acceptance_length, 3),
        "equal_to_plain": round(found.num_equal / found.num_answers, 4),
        "speculative_vs_plain": round(speedup, 3),
        "theoretical_speedup": round(theory, 3),
        "share_of_theoretical": round(speedup / theory, 3),
        "generate_tokens_per_s": round(generate, 2),
        "plain_vs_generate": round(plain.tokens_per_s / generate, 3),
        "speculative_vs_generate": round(fast.tokens_per_s / generate, 3),
    }


def _print(console: Console, report: dict[str, Any]) -> None:
    plain = {
        "tokens/s": "{plain_tokens_per_s:.1f}",
        "ms a step": "{plain_step_ms:.2f}",
        "host": "{plain_host_ms:.2f}",
        "of copy bandwidth": "{share_of_copy_bandwidth:.0%}",
        "x generate": "{plain_vs_generate:.2f}",
    }
    fast = {
        "tokens/s": "{speculative_tokens_per_s:.1f}",
        "ms a round": "{ms_a_round[decode]:.2f}",
        "draft": "{ms_a_round[draft]:.2f}",
        "verify": "{ms_a_round[verify]:.2f}",
        "host": "{ms_a_round[host]:.2f}",
        "acceptance": "{acceptance:.3f}",
        "length": "{acceptance_length:.2f}",
        "x plain": "{speculative_vs_plain:.2f}",
        "theory": "{theoretical_speedup:.2f}",
        "of theory": "{share_of_theoretical:.0%}",
        "x generate": "{speculative_vs_generate:.2f}",
    }
    title = f"speculative, {report['speculation_length']} tokens a round, acceptance {report['acceptance_asked']} asked"
    for name, columns in (("plain", plain), (title, fast)):
        table = Table("batch", *columns, title=name)
        for batch, figures in report["batches"].items():
            table.add_row(batch, *(column.format(**figures) for column in columns.values()))
        console.print(table)
    for batch, figures in report["batches"].items():
        if figures["equal_to_plain"] < 1:
            console.print(f"batch {batch}: {figures['equal_to_plain']:.0%} of the answers are the plain ones")


def _add(answers: dict[str, list[int]], deltas: list[TokenDelta]) -> None:
    for delta in deltas:
        answers[delta.request_id] += delta.token_ids


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="of which model (default: Llama-3.2-1B)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64], help="batch sizes")
    parser.add_argument("--length", type=int, default=4, help="tokens proposed each round")
    parser.add_argument("--acceptance", type=float, default=0.72, help="probability that a proposed token is right")
    parser.add_argument("--tokens", type=int, default=128, help="length of an answer")
    parser.add_argument("--context", type=int, default=128, help="length of a prompt")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each")
    parser.add_argument("--device", default="auto", help="as for osd serve")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all physical cores)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, prompts and spoiling")
    parser.add_argument("--json", action="store_true", help="end with one JSON line on stdout; the rest goes to stderr")
    args = parser.parse_args(arguments)
    if not 0.0 <= args.acceptance <= 1.0:
        parser.error("--acceptance is a probability: from 0 to 1")
    if args.tokens < 4 * (args.length + 1):
        parser.error(f"--tokens {args.tokens} leaves no rounds to time; take {4 * (args.length + 1)} or more")
    return args


if __name__ == "__main__":
    main()
