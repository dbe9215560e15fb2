"""The cost of training per token where trainer and engine share a device; without Ray, Redis and HTTP.

The engine runs in this process, with a random model and a drafter of a set acceptance; the trainer runs in another
process on the same device. Blocks of queries alternate between training paused, training that yields as in service, and
training that never yields, so that drift of the machine affects all alike. With `--json` the last line of stdout is one
JSON object.

    python -m benchmarks.shared_device --shape 1b --seconds 2 --blocks 3
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.engine_load import Block, Serving
from benchmarks.machine import describe_machine
from benchmarks.random_models import SHAPES, random_llama
from benchmarks.shape_bench import ShapeBench, feature_config
from benchmarks.training_process import Mode, TrainingProcess
from osd.config.trainer import TrainerConfig
from osd.loading.causal_lm import choose_device

_MODES = (Mode.PAUSED, Mode.YIELDING, Mode.ALWAYS)
_LOADS = ("closed", "open")
_PERCENTILES = (50, 95)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = _arguments(arguments)
    console = Console(stderr=args.json)
    console.width = max(console.width, 128)  # wide enough where the output is not a terminal
    torch.set_num_threads(args.threads or psutil.cpu_count(logical=False) or 1)
    shape, device = SHAPES[args.shape], choose_device(args.device)
    # An unreachable margin, so that nothing is published and the serving drafter stays the same.
    config = TrainerConfig(device=str(device), gate_margin=100.0, gate_every_steps=args.gate_every)
    tokens = {"prompt_tokens": args.context, "output_tokens": args.tokens}
    with TrainingProcess(feature_config(shape), config, **tokens) as training:  # it loads while the model is made
        bench = ShapeBench(
            random_llama(shape, device, args.seed),
            shape,
            max_rows=args.slots,
            length=args.length,
            acceptance=args.acceptance,
            context_tokens=args.context,
            answer_tokens=args.tokens,
            seed=args.seed,
        )
        draw = random.Random(args.seed)
        prompts = [[draw.randrange(shape.vocab_tokens) for _ in range(args.context)] for _ in range(args.slots)]
        bench.drafter.remember(prompts, bench.decode(prompts, 0).answers)
        serving = Serving(bench, prompts, args.tokens)
        rate = args.busy / _warm_up(serving, args)
        console.print(
            f"a random model of shape {args.shape}, on {device}; {rate:.2f} queries/s keep it {args.busy:.0%} busy"
        )
        training.watch(bench.engine.utilisation.share)
        training.warm_up()
        loads = {load: _alternate(serving, training, load, rate, args) for load in args.loads}
    report = {
        "benchmark": "shared_device",
        "at": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "device": str(device),
        "has_mps": Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control").exists(),
        "shape": args.shape,
        "dtype": str(shape.dtype).removeprefix("torch."),
        "weights": "random",
        "speculation_length": args.length,
        "acceptance_asked": args.acceptance,
        "context_tokens": args.context,
        "max_tokens": args.tokens,
        "busy_asked": args.busy,
        "queries_per_s": round(rate, 3),
        "max_utilisation": config.max_utilisation,
        "batch_tokens": config.batch_tokens,
        "gate_every_steps": config.gate_every_steps,
        "loads": {load: _figures(by_mode) for load, by_mode in loads.items()},
    }
    _print(console, report)
    if args.json:
        print(json.dumps(report))


def _warm_up(serving: Serving, args: argparse.Namespace) -> float:
    """Run rounds of all shapes, so that they are captured; returns the seconds that one query takes."""
    for rows in [1] * args.slots + list(range(2, args.slots + 1)):  # one prompt in each slot, then several at once
        serving.open([0.0] * rows)
    block = serving.closed(args.seconds / 2)
    query_s = block.busy_s / len(block.tpots_s)
    serving.open([number * query_s / 3 for number in range(4 * args.slots)])  # rows that begin and end at other times
    return query_s


def _alternate(
    serving: Serving, training: TrainingProcess, load: str, rate: float, args: argparse.Namespace
) -> dict[Mode, Block]:
    """Alternate all modes, in rotating order; within one turn all modes get the same arrivals."""
    found = {mode: Block() for mode in _MODES}
    for turn in range(args.blocks):
        draw = random.Random(turn)
        # A Poisson process's arrivals, given their number.
        arrivals_s = sorted(draw.uniform(0.0, args.seconds) for _ in range(max(round(rate * args.seconds), 1)))
        asks = {
            "closed": partial(serving.closed, args.seconds),
            "open": partial(serving.open, arrivals_s, args.seconds),
        }
        first = turn % len(_MODES)
        for mode in _MODES[first:] + _MODES[:first]:
            training.set(mode)
            before = training.progress()
            block = asks[load]()
            block.steps, block.trained_tokens = (
                now - then for now, then in zip(training.progress(), before, strict=True)
            )
            found[mode].add(block)
    training.set(Mode.PAUSED)
    return found


def _figures(by_mode: dict[Mode, Block]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    paused_ms = {p: float(np.percentile(by_mode[Mode.PAUSED].tpots_s, p)) * 1e3 for p in _PERCENTILES}
    for mode, block in by_mode.items():
        at = figures[mode.name.lower()] = {
            "queries": len(block.tpots_s),
            "busy": round(block.busy_s / block.elapsed_s, 3),
            "steps": block.steps,
            "trained_tokens_per_s": round(block.trained_tokens / block.elapsed_s, 1),
        }
        for p in _PERCENTILES:
            at_ms = float(np.percentile(block.tpots_s, p)) * 1e3
            at[f"tpot_p{p}_ms"], at[f"tpot_p{p}_ratio"] = round(at_ms, 3), round(at_ms / paused_ms[p], 3)
    return figures


def _print(console: Console, report: dict[str, Any]) -> None:
    columns = {
        "queries": "{queries}",
        "busy": "{busy:.0%}",
        "steps trained": "{steps}",
        "tokens trained/s": "{trained_tokens_per_s:.0f}",
        "p50, ms": "{tpot_p50_ms:.2f}",
        "x paused": "{tpot_p50_ratio:.2f}",
        "p95, ms": "{tpot_p95_ms:.2f}",
        "x paused ": "{tpot_p95_ratio:.2f}",
    }
    table = Table("load", "training", *columns, title="time per output token")
    for load, by_mode in report["loads"].items():
        for mode, at in by_mode.items():
            table.add_row(load, mode, *(column.format(**at) for column in columns.values()))
    console.print(table)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = TrainerConfig()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="of which model (default: Llama-3.2-1B)")
    parser.add_argument(
        "--loads", default=",".join(_LOADS), help="with commas: closed (one query at a time, no pause), open"
    )
    parser.add_argument(
        "--busy", type=float, default=0.3, help="share of the time that the open load keeps the engine busy"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of a block")
    parser.add_argument("--blocks", type=int, default=3, help="blocks of each load and mode")
    parser.add_argument("--slots", type=int, default=4, help="queries decoded at once")
    parser.add_argument("--length", type=int, default=4, help="tokens proposed each round")
    parser.add_argument("--acceptance", type=float, default=0.72, help="probability that a proposed token is right")
    parser.add_argument("--tokens", type=int, default=64, help="length of an answer")
    parser.add_argument("--context", type=int, default=128, help="length of a prompt")
    parser.add_argument(
        "--gate-every",
        type=int,
        default=defaults.gate_every_steps,
        help="steps between two gates, each with a checkpoint",
    )
    parser.add_argument("--device", default="auto", help="of both, as for osd serve")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads of the engine (default: all physical cores)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, prompts and spoiling")
    parser.add_argument("--json", action="store_true", help="end with one JSON line on stdout; the rest goes to stderr")
    args = parser.parse_args(arguments)
    args.loads = [name for name in args.loads.split(",") if name]
    if unknown := set(args.loads) - set(_LOADS):
        parser.error(f"unknown load {sorted(unknown)[0]!r}; there are: {', '.join(_LOADS)}")
    if not 0.0 < args.busy < 1.0:
        parser.error("--busy is a share: above 0 and below 1")
    return args


if __name__ == "__main__":
    main()
