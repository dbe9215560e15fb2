"""Decoding speed by a model's shape, with random weights and a drafter of a set acceptance; nothing is downloaded.

For each batch size, plain and speculative decoding take turns on one osd engine. Timed are rounds in which every row
decodes and proposes its full length. Beside them runs transformers over the same model, plain and (one query at a time)
with an assistant of the same acceptance. With `--json` the last line of stdout is one JSON object.

    python -m benchmarks.shapes --shape 1b --batch 1 4 16 64 --length 4 --acceptance 0.72
    python -m benchmarks.shapes --shape 8b --drafter model --batch 1
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.decode import Total, theoretical_speedup
from benchmarks.machine import copy_bytes_per_s, describe_machine
from benchmarks.random_models import SHAPES, SMALLER, drafter_shape, random_llama, weight_bytes
from benchmarks.shape_bench import Comparison, ShapeBench
from benchmarks.shape_peers import PEERS, Assistance, measure_peers
from osd.loading.causal_lm import choose_device


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every batch size."""
    args = _arguments(arguments)
    console = Console(stderr=args.json)
    console.width = max(console.width, 140)  # wide enough where the output is not a terminal
    torch.set_num_threads(args.threads or psutil.cpu_count(logical=False) or 1)
    shape, device = SHAPES[args.shape], choose_device(args.device)
    small = drafter_shape(args.drafter_shape, shape)
    console.print(f"a random model of shape {args.shape}, on {device}")
    draw = random.Random(args.seed)
    prompts = [[draw.randrange(shape.vocab_tokens) for _ in range(args.context)] for _ in range(max(args.batch))]
    model = random_llama(shape, device, args.seed)
    read_bytes, bandwidth = weight_bytes(model), copy_bytes_per_s(device)
    # Before the engine, which changes the layout of the model's weights.
    peers, missing = measure_peers(
        args.peers,
        model,
        [prompts[:batch] for batch in args.batch],
        args.tokens,
        Assistance(small, args.length, args.acceptance, args.repeats, args.seed),
    )
    bench = ShapeBench(
        model,
        shape,
        drafter_shape=small if args.drafter == "model" else None,
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
        "drafter": args.drafter,
        "small_lm": args.drafter_shape,
        "speculation_length": args.length,
        "acceptance_asked": args.acceptance,
        "context_tokens": args.context,
        "max_tokens": args.tokens,
        "repeats": args.repeats,
        "weight_bytes": read_bytes,
        "copy_bytes_per_s": round(bandwidth),
        "missing": missing,
        "batches": {},
    }
    for batch, theirs in zip(args.batch, peers, strict=True):
        comparison = bench.compare(prompts[:batch], args.repeats)
        report["batches"][str(batch)] = _figures(comparison, theirs, read_bytes, bandwidth)
    _print(console, report)
    if args.json:
        print(json.dumps(report))


def _figures(found: Comparison, theirs: dict[str, Any], read_bytes: int, bandwidth: float) -> dict[str, Any]:
    """The figures of one batch size; a peer's are None where it did not run."""
    plain, fast = Total({"": found.plain}), Total({"": found.fast})
    step_ms = plain.ms_a_round("decode_s")
    speedup, theory = fast.tokens_per_s / plain.tokens_per_s, theoretical_speedup(plain, fast)
    ratios = {}
    for peer in PEERS:
        speed = theirs[f"{peer}_tokens_per_s"]
        for name, own in (("plain", plain), ("speculative", fast)):
            ratios[f"{name}_vs_{peer}"] = None if speed is None else round(own.tokens_per_s / speed, 3)
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
        **theirs,
        **ratios,
    }


_PLAIN = {
    "tokens/s": "{plain_tokens_per_s:.1f}",
    "ms a step": "{plain_step_ms:.2f}",
    "host": "{plain_host_ms:.2f}",
    "of copy bandwidth": "{share_of_copy_bandwidth:.0%}",
    "x generate": "{plain_vs_generate:.2f}",
    "x assisted": "{plain_vs_assisted:.2f}",
}
_FAST = {
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
    "x assisted": "{speculative_vs_assisted:.2f}",
}
_THEIRS = {
    "generate, tokens/s": "{generate_tokens_per_s:.1f}",
    "assisted, tokens/s": "{assisted_tokens_per_s:.1f}",
    "acceptance": "{assisted_acceptance:.3f}",
    "length": "{assisted_acceptance_length:.2f}",
}


class _Missing:
    """A missing figure: formats as nothing."""

    def __format__(self, spec: str) -> str:
        return ""


def _print(console: Console, report: dict[str, Any]) -> None:
    kind = report["drafter"] if report["drafter"] == "feature" else f"a small LM of shape {report['small_lm']}"
    asked = f"{report['speculation_length']} tokens a round, acceptance {report['acceptance_asked']} asked"
    tables = {
        "osd, plain": _PLAIN,
        f"osd, speculative with {kind}: {asked}": _FAST,
        f"transformers; its assistant a small LM of shape {report['small_lm']}: {asked}": _THEIRS,
    }
    for title, columns in tables.items():
        table = Table("batch", *columns, title=title)
        for batch, figures in report["batches"].items():
            shown = {name: _Missing() if value is None else value for name, value in figures.items()}
            table.add_row(batch, *(column.format(**shown) for column in columns.values()))
        console.print(table)
    for peer, reason in report["missing"].items():
        console.print(f"{peer}: missing: {reason}")
    for batch, figures in report["batches"].items():
        for name, share in (("osd's", figures["equal_to_plain"]), ("assisted", figures["assisted_equal_to_plain"])):
            if share is not None and share < 1:
                console.print(f"batch {batch}: {share:.0%} of {name} answers are the plain ones")


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="of which model (default: Llama-3.2-1B)")
    parser.add_argument("--drafter", choices=("feature", "model"), default="feature", help="kind of osd's drafter")
    parser.add_argument(
        "--drafter-shape", choices=SHAPES, help="of the small LM, osd's and transformers' (default: the next smaller)"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64], help="batch sizes")
    parser.add_argument("--length", type=int, default=4, help="tokens proposed each round")
    parser.add_argument("--acceptance", type=float, default=0.72, help="probability that a proposed token is right")
    parser.add_argument("--tokens", type=int, default=128, help="length of an answer")
    parser.add_argument("--context", type=int, default=128, help="length of a prompt")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each")
    parser.add_argument("--peers", default=",".join(PEERS), help="of transformers, with commas; empty for none")
    parser.add_argument("--device", default="auto", help="as for osd serve")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all physical cores)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, prompts and spoiling")
    parser.add_argument("--json", action="store_true", help="end with one JSON line on stdout; the rest goes to stderr")
    args = parser.parse_args(arguments)
    if not 0.0 <= args.acceptance <= 1.0:
        parser.error("--acceptance is a probability: from 0 to 1")
    if args.tokens < 4 * (args.length + 1):
        parser.error(f"--tokens {args.tokens} leaves no rounds to time; take {4 * (args.length + 1)} or more")
    args.drafter_shape = args.drafter_shape or SMALLER[args.shape]
    args.peers = [name for name in args.peers.split(",") if name]
    if unknown := set(args.peers) - set(PEERS):
        parser.error(f"unknown peer {sorted(unknown)[0]!r}; there are: {', '.join(PEERS)}")
    return args


if __name__ == "__main__":
    main()
