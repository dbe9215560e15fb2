"""Decoding speed side by side: osd plain and speculative, transformers in four modes, llama.cpp.

Each contender has its own process. They take turns with every batch of prompts, so that a machine that slows down slows
all of them. Prefill is not included in speeds.

    python -m benchmarks.decode [--batches 1,4,16] [--sampled] [--prompts FILE.jsonl] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.contenders import Job, MissingPeerError, Run, Setting
from benchmarks.machine import copy_bytes_per_s, describe_machine
from benchmarks.plots import plot_speeds
from benchmarks.prompts import code_prompts, small_talk_prompts, tool_call_prompts
from benchmarks.worker import CONTENDERS, Worker
from osd.loading.causal_lm import choose_device, choose_dtype
from osd.loading.stored import stored_in
from osd.text.prompt_file import Messages, read_prompts

_RATIOS = {
    "plain_vs_generate": ("osd plain", "generate"),
    "speculative_vs_generate": ("osd speculative", "generate"),
    "speculative_vs_assisted": ("osd speculative", "assisted"),
    "speculative_vs_llama_cpp": ("osd speculative", "llama.cpp"),
    "speculative_vs_plain": ("osd speculative", "osd plain"),
    "untrained_vs_plain": ("osd untrained", "osd plain"),
    "block_verification_vs_speculative": ("osd block verification", "osd speculative"),
    "plain_int4_vs_llama_cpp": ("osd plain int4", "llama.cpp"),
    "speculative_int4_vs_llama_cpp": ("osd speculative int4", "llama.cpp"),
}
_SOURCES = ("HumanEval", "BFCL", "chatterbot")
_SPECULATIVE = {
    "osd speculative": "osd plain",
    "osd block verification": "osd plain",
    "osd speculative int4": "osd plain int4",
    "osd model drafter": "osd plain",
}
"""For each, the contender that decodes the same target without speculation."""


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of a contender's runs at one batch size."""

    by_source: dict[str, list[Run]]

    @property
    def runs(self) -> list[Run]:
        """The runs of all prompt sources."""
        return [run for runs in self.by_source.values() for run in runs]

    def of(self, source: str) -> Total:
        """The runs of one source alone."""
        return Total({source: self.by_source[source]})

    def sum(self, name: str) -> float:
        """The sum of one field."""
        return float(sum(getattr(run, name) for run in self.runs))

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed of the whole batch."""
        return self.sum("decoded_tokens") / self.sum("decode_s") if self.runs else 0.0

    @property
    def acceptance_length(self) -> float:
        """Committed tokens per round and row."""
        return self.sum("committed") / self.sum("row_rounds") if self.sum("row_rounds") else 0.0

    def ms_a_round(self, name: str) -> float:
        """Mean milliseconds per round of `decode_s`, `draft_s` or `verify_s`."""
        return self.sum(name) / self.sum("rounds") * 1e3 if self.sum("rounds") else 0.0

    @property
    def host_ms(self) -> float:
        """Milliseconds of a round outside drafting and the target's pass: scheduling, sampling, recording and so on."""
        return self.ms_a_round("decode_s") - self.ms_a_round("draft_s") - self.ms_a_round("verify_s")


def main() -> None:
    """Run the comparison."""
    args = _arguments()
    console = Console(stderr=args.json)
    streams = _streams(args)
    setting, encoded = _setting(args, streams)
    weight_bytes = _weight_bytes(Path(setting.folder), setting.dtype)
    bandwidth = copy_bytes_per_s(choose_device(args.device))
    workers, missing = _start(console, args.contenders, setting)
    results: dict[int, dict[str, Total]] = {}
    try:
        for batch in args.batches:
            results[batch] = _compare(console, workers, missing, encoded, batch, args)
            _print(console, batch, results[batch], weight_bytes, bandwidth)
    finally:
        for worker in workers:
            worker.close()
    for name, reason in missing.items():
        console.print(f"{name}: missing: {reason}")
    if args.plot:
        plot_speeds(
            Path(args.plot),
            {batch: {n: t.tokens_per_s for n, t in totals.items()} for batch, totals in results.items()},
        )
        console.print(f"plot: {args.plot}")
    if args.json:
        print(json.dumps(_report(args, results, missing, weight_bytes, bandwidth)))


def _streams(args: argparse.Namespace) -> dict[str, list[Messages]]:
    """Prompts by name of their source."""
    if args.prompts:
        return {Path(path).stem: read_prompts(Path(path)) for path in args.prompts}
    known = dict(zip(_SOURCES, (code_prompts, tool_call_prompts, small_talk_prompts), strict=True))
    return {name: known[name]()[args.skip :] for name in args.sources}


def _setting(
    args: argparse.Namespace, streams: dict[str, list[Messages]]
) -> tuple[Setting, dict[str, list[list[int]]]]:
    """The settings for the contenders, and the chosen prompts as token ids."""
    from osd.config.settings import default_state_dir
    from osd.loading.resolve import packaged_smollm2, resolve_target
    from osd.text.codec import TextCodec

    state_dir = Path(args.state_dir) if args.state_dir else default_state_dir()
    resolved = resolve_target(args.target, state_dir)
    codec = TextCodec.open(resolved.folder, resolved.target_id, 2048)
    generator = random.Random(args.seed)
    encoded = {}
    for name, prompts in streams.items():
        chosen = generator.sample(prompts, min(args.num_prompts, len(prompts)))
        encoded[name] = [list(codec.encode_chat(messages)) for messages in chosen]
    gguf = str(packaged_smollm2()) if args.target == "smollm2" else args.target * args.target.endswith(".gguf")
    setting = Setting(
        target=args.target,
        folder=str(resolved.folder),
        state_dir=str(state_dir),
        gguf=args.gguf or gguf,
        threads=args.threads or psutil.cpu_count(logical=False) or 1,
        dtype=args.dtype,
        device=args.device,
        max_rows=max(args.batches),
        speculation_length=args.length,
        eos_ids=sorted(codec.end_ids),
    )
    return setting, encoded


def _start(console: Console, names: list[str], setting: Setting) -> tuple[list[Worker], dict[str, str]]:
    workers, missing = [], {}
    for name in names:
        console.print(f"loading {name}")
        worker = Worker(name, setting)
        if worker.missing:
            missing[name] = worker.missing
            worker.close()
        else:
            workers.append(worker)
    return workers, missing


def _compare(
    console: Console,
    workers: list[Worker],
    missing: dict[str, str],
    encoded: dict[str, list[list[int]]],
    batch: int,
    args: argparse.Namespace,
) -> dict[str, Total]:
    """Give every batch of prompts to all contenders in rotating order; the first batch warms up."""
    jobs = []
    for source, prompts in encoded.items():
        for start in range(0, max(len(prompts) - batch + 1, 1), batch):
            rows = [prompts[(start + row) % len(prompts)] for row in range(batch)]
            jobs.append((source, Job(rows, args.max_tokens, args.sampled)))
    runs: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    able = list(workers)
    jobs *= args.repeats
    with Progress(console=console) as progress:
        task = progress.add_task(f"batch {batch}", total=(len(jobs) + 1) * len(workers))
        for number, (source, job) in enumerate([jobs[0], *jobs]):
            begins = number % max(len(able), 1)
            for worker in able[begins:] + able[:begins]:
                try:
                    run = worker.run(job)
                    if number:
                        runs[worker.name][source].append(run)
                except MissingPeerError as error:
                    missing[f"{worker.name} at batch {batch}"] = str(error)
                    able.remove(worker)
                progress.advance(task)
    return {worker.name: Total(dict(runs[worker.name])) for worker in workers if runs[worker.name]}


def theoretical_speedup(plain: Total, fast: Total) -> float:
    """E / (k * c + v(k)): committed tokens per round over the cost of a round in plain passes, both measured."""
    plain_ms = plain.ms_a_round("verify_s")
    cost = (fast.ms_a_round("draft_s") + fast.ms_a_round("verify_s")) / plain_ms if plain_ms else 0.0
    return fast.acceptance_length / cost if cost else 0.0


def _print(console: Console, batch: int, totals: dict[str, Total], weight_bytes: int, bandwidth: float) -> None:
    table = Table(title=f"batch {batch}")
    columns = (
        "",
        "tokens/s",
        "acceptance length",
        "ms a round",
        "draft",
        "verify",
        "host",
        "GB/s read",
        "of bandwidth",
    )
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for name, total in totals.items():
        verify_ms = total.ms_a_round("verify_s")
        is_known = verify_ms and not name.endswith("int4")  # weight_bytes are those of unquantised weights
        read = weight_bytes / verify_ms * 1e3 if is_known else 0.0
        parts = [f"{total.ms_a_round(part):.2f}" if verify_ms else "-" for part in ("draft_s", "verify_s")]
        table.add_row(
            name,
            f"{total.tokens_per_s:.1f}",
            f"{total.acceptance_length:.2f}" if total.acceptance_length else "-",
            f"{total.ms_a_round('decode_s'):.2f}" if total.sum("rounds") else "-",
            *parts,
            f"{total.host_ms:.2f} ({total.host_ms / total.ms_a_round('decode_s'):.1%})" if verify_ms else "-",
            f"{read / 1e9:.1f}" if read else "-",
            f"{read / bandwidth:.0%}" if read else "-",
        )
    console.print(table)
    for name in _SPECULATIVE:
        if name in totals:
            by_source = (f"{one} {totals[name].of(one).acceptance_length:.2f}" for one in totals[name].by_source)
            console.print(f"{name}: acceptance length: {', '.join(by_source)}")
    for name, plain in _SPECULATIVE.items():
        if {name, plain} <= totals.keys():
            theory = theoretical_speedup(totals[plain], totals[name])
            achieved = totals[name].tokens_per_s / totals[plain].tokens_per_s
            console.print(f"{name}: {achieved:.2f}x plain, {achieved / theory:.0%} of the theoretical {theory:.2f}x")


def _report(
    args: argparse.Namespace,
    results: dict[int, dict[str, Total]],
    missing: dict[str, str],
    weight_bytes: int,
    bandwidth: float,
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "benchmark": "decode",
        "at": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "target": args.target,
        "sampled": args.sampled,
        "sources": [Path(path).name for path in args.prompts] or args.sources,
        "skip": args.skip,
        "speculation_length": args.length,
        "max_tokens": args.max_tokens,
        "weight_bytes": weight_bytes,
        "copy_bytes_per_s": round(bandwidth),
    }
    first = results.get(1, {})
    report |= {name: _ratio(first, *pair) for name, pair in _RATIOS.items()}
    report["batches"] = {
        str(batch): {
            "tokens_per_s": {name: round(total.tokens_per_s, 2) for name, total in totals.items()},
            "acceptance_length": {
                name: round(total.acceptance_length, 3) for name, total in totals.items() if total.acceptance_length
            },
            "acceptance_length_by_source": {
                name: {one: round(totals[name].of(one).acceptance_length, 3) for one in totals[name].by_source}
                for name in _SPECULATIVE
                if name in totals
            },
            "tokens_per_s_by_source": {
                name: {one: round(total.of(one).tokens_per_s, 2) for one in total.by_source}
                for name, total in totals.items()
            },
            "ms_a_round": {
                name: {part: round(total.ms_a_round(f"{part}_s"), 3) for part in ("decode", "draft", "verify")}
                for name, total in totals.items()
                if total.sum("verify_s")
            },
            "ratios": {name: _ratio(totals, *pair) for name, pair in _RATIOS.items()},
            "theoretical_speedup": round(theoretical_speedup(totals["osd plain"], totals["osd speculative"]), 3)
            if {"osd plain", "osd speculative"} <= totals.keys()
            else None,
        }
        for batch, totals in results.items()
    }
    report["missing"] = missing
    return report


def _ratio(totals: dict[str, Total], name: str, peer: str) -> float | None:
    if name not in totals or peer not in totals:
        return None
    return round(totals[name].tokens_per_s / totals[peer].tokens_per_s, 3)


def _weight_bytes(folder: Path, dtype: str) -> int:
    """Bytes that one pass reads: every matrix once. A separate embedding table is only looked up in."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    size = choose_dtype(dtype, choose_device("auto"), stored_in(folder)).itemsize
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not config.tie_word_embeddings:
        parameters -= model.get_input_embeddings().weight.numel()
    return int(parameters * size)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--target", default="smollm2", help="as for osd serve")
    parser.add_argument("--state-dir", default="", help="where the drafter's versions are (default: the user's)")
    parser.add_argument("--prompts", action="append", default=[], help='JSONL of {"prompt": …} instead; repeatable')
    parser.add_argument("--sources", default=",".join(_SOURCES), help="prompts where no file is given, with commas")
    parser.add_argument("--skip", type=int, default=0, help="first prompts left out: those a drafter was adapted to")
    parser.add_argument("--num-prompts", type=int, default=16, help="prompts of each source")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--repeats", type=int, default=1, help="times that each prompt is decoded by each contender")
    parser.add_argument("--batches", default="1,4,16", help="batch sizes, with commas")
    parser.add_argument("--length", type=int, help="always propose this many (default: as osd chooses)")
    parser.add_argument("--sampled", action="store_true", help="temperature 0.8, top-p 0.95 instead of greedy")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="names, with commas")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of each (default: all physical cores)")
    parser.add_argument("--dtype", default="auto", help="as for osd serve")
    parser.add_argument("--device", default="auto", help="as for osd serve")
    parser.add_argument("--gguf", default="", help="file for llama.cpp (default: the target's own)")
    parser.add_argument("--seed", type=int, default=0, help="choice of prompts")
    parser.add_argument("--plot", default="", help="PNG to write")
    parser.add_argument("--json", action="store_true", help="end with one JSON line on stdout; the rest goes to stderr")
    args = parser.parse_args()
    args.sources = [name.strip() for name in args.sources.split(",")]
    if unknown := set(args.sources) - set(_SOURCES):
        parser.error(f"unknown source {sorted(unknown)[0]!r}; there are: {', '.join(_SOURCES)}")
    args.batches = [int(batch) for batch in args.batches.split(",")]
    args.contenders = [name.strip() for name in args.contenders.split(",")]
    if unknown := set(args.contenders) - CONTENDERS.keys():
        parser.error(f"unknown contender {sorted(unknown)[0]!r}; there are: {', '.join(CONTENDERS)}")
    return args


if __name__ == "__main__":
    main()
