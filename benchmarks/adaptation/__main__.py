"""Experiments on how a drafter adapts, replayed from recorded answers.

Greedy decoding is lossless, so the drafter never changes an answer. Each stream's answers are therefore recorded once,
and every arm of every experiment is replayed against them without the target; `check` verifies that a live run has the
same rounds. A query is always scored before anything is learnt from it.

    python -m benchmarks.adaptation record STREAM…
    python -m benchmarks.adaptation check STREAM [--queries 100]
    python -m benchmarks.adaptation run STREAM… [--order ORDER] [--arms frozen,online,…] [--seeds 3]

STREAM is "bfcl", "humaneval", "chatterbot", a JSONL file of `{"domain": …, "messages": […]}` lines, or "edits:" and one
of these, whose texts are then to be written again with a word changed. ORDER is "sharp"
(one stream after the other; a stream named again continues with its next queries), "smooth" (the second of two streams
gradually replaces the first) or "mixed". Finished runs are stored in the state folder, so a killed experiment continues
with the missing arms and seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.adaptation.answers import record
from benchmarks.adaptation.check import compare, decode_live
from benchmarks.adaptation.lab import ARMS, Lab, Run, draw_order, run_arm
from benchmarks.adaptation.learner import hidden_dtype, open_bare_drafter
from benchmarks.adaptation.replay import LearnedProposer
from benchmarks.adaptation.report import show, summarise
from benchmarks.adaptation.scores import Score, total
from benchmarks.adaptation.streams import mixed, read_stream, sharp, smooth
from benchmarks.machine import describe_machine
from benchmarks.plots import plot_arms
from osd.assembly.drafter import ensure_first_version, open_store
from osd.assembly.kernels import prepare_backend
from osd.config.paths import slug
from osd.config.settings import Config, load_config
from osd.loading.causal_lm import choose_dtype
from osd.loading.resolve import ResolvedTarget, resolve_target
from osd.loading.stored import stored_in
from osd.records.errors import OsdError
from osd.records.outcome import Outcome

_SAMPLED_TOP_K = 128


def main(arguments: Sequence[str] | None = None) -> None:
    """Record, check or run."""
    args = _arguments(arguments)
    console = Console(stderr=True)
    console.width = max(console.width, 128)  # wide enough where the output is not a terminal
    config, resolved = _target(args)
    streams = {name: _recorded(args, config, resolved, name, console) for name in dict.fromkeys(args.streams)}
    if args.command == "record":
        for name, outcomes in streams.items():
            num_tokens = sum(len(outcome.output_ids) for outcome in outcomes)
            console.print(f"{name}: {len(outcomes)} answers, {num_tokens:,} tokens")
        return
    torch.set_num_threads(config.trainer.threads)  # as the served trainer does
    lab = Lab(
        config=config,
        resolved=resolved,
        hidden_size=next(iter(streams.values()))[0].hidden_size,
        length=args.length,
        max_tokens=args.max_tokens,
        steps_per_query=args.steps_per_query,
        passes=args.passes,
        pool_bytes=args.pool_bytes,
    )
    report = _check(args, lab, streams, console) if args.command == "check" else _run(args, lab, streams, console)
    print(json.dumps(report))  # the last line is for machines


def _target(args: argparse.Namespace) -> tuple[Config, ResolvedTarget]:
    """The configuration (on the CPU, with the dtype chosen), and the target."""
    flags: dict[str, Any] = {
        "target": {"model": args.target, "device": "cpu"},
        "drafter": {"vocab_tokens": args.draft_vocab_tokens},
    }
    if args.temperature:  # what the emitted tokens' probabilities are read from
        flags["outcomes"] = {"top_k": _SAMPLED_TOP_K}
    if args.state_dir:
        flags["state_dir"] = args.state_dir
    config = load_config(args.config, flags)
    resolved = resolve_target(config.target.model, config.state_dir)
    dtype = choose_dtype(args.dtype, torch.device("cpu"), stored_in(resolved.folder))
    target = config.target.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
    return config.model_copy(update={"target": target}), resolved


def _recorded(
    args: argparse.Namespace, config: Config, resolved: ResolvedTarget, name: str, console: Console
) -> list[Outcome]:
    prompts = read_stream(name, args.recorded)
    label = Path(name).stem
    return record(
        config,
        resolved,
        prompts,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        on_progress=lambda made: console.print(f"{label}: {made} of {len(prompts)} answers"),
    )


def _check(
    args: argparse.Namespace, lab: Lab, streams: dict[str, list[Outcome]], console: Console
) -> dict[str, object]:
    """Compare live rounds with replayed ones, for the drafter version that the state folder would serve."""
    outcomes = [outcome for own in streams.values() for outcome in own[: args.queries]]
    _prepare(lab, console)
    store = open_store(lab.config, lab.resolved)
    ensure_first_version(lab.config, lab.resolved, store)
    drafter = open_bare_drafter(lab.config, lab.resolved, store)
    proposer = LearnedProposer(drafter, lab.hidden_size, lab.config.target.max_context_tokens, hidden_dtype(lab.config))
    live = decode_live(
        lab.config,
        outcomes,
        length=lab.length,
        max_tokens=lab.max_tokens,
        on_progress=lambda done: console.print(f"{done} of {len(outcomes)} decoded live") if not done % 10 else None,
    )
    found = compare(proposer, outcomes, live, length=lab.length, max_tokens=lab.max_tokens)
    console.print(
        f"{found.equal_rounds} of {found.queries} queries with equal answers and rounds, {found.equal_answers} with "
        f"equal answers; {found.replayed_rounds} rounds replayed, {found.live_rounds} live"
    )
    return {
        "benchmark": "adaptation-check",
        "at": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "streams": [Path(name).stem for name in streams],
        **lab.described(),
        "queries": found.queries,
        "equal_answers": found.equal_answers,
        "equal_rounds": found.equal_rounds,
        "replayed_rounds": found.replayed_rounds,
        "live_rounds": found.live_rounds,
    }


def _run(args: argparse.Namespace, lab: Lab, streams: dict[str, list[Outcome]], console: Console) -> dict[str, object]:
    runs: dict[str, list[Run]] = {arm: [] for arm in args.arms}
    for seed in range(args.seeds):
        outcomes, others = _order(args, streams, seed)
        for arm in args.arms:
            runs[arm].append(_kept_run(args, lab, arm, outcomes, others, seed, console))
    summary = summarise(runs, args.window)
    show(console, summary, args.seeds)
    report = {
        "benchmark": "adaptation",
        "at": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "order": args.order,
        "streams": [Path(name).stem for name in args.streams],
        "queries_a_stream": args.queries,
        "seeds": args.seeds,
        "window": args.window,
        "temperature": args.temperature,
        **lab.described(),
        "arms": summary,
    }
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f"adaptation-{args.name or args.order}_{report['at']}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        lengths = {arm: _running(own, args.window) for arm, own in runs.items()}
        plot_arms(path.with_suffix(".png"), lengths, next(iter(runs.values()))[0].domains, args.window)
        console.print(f"written: {path} and its plot")
    return report


def _order(
    args: argparse.Namespace, streams: dict[str, list[Outcome]], seed: int
) -> tuple[list[Outcome], list[Outcome]]:
    """The stream for this seed, and the recorded answers that are not in it."""
    num = {name: args.queries * args.streams.count(name) for name in streams}
    drawn = {name: draw_order(own, num[name], seed) for name, own in streams.items()}
    if short := [name for name in streams if len(drawn[name][0]) < num[name]]:
        raise OsdError(f"{short[0]} has fewer than the {num[short[0]]} answers that are asked for; lower --queries")
    waiting = {name: iter(own) for name, (own, _) in drawn.items()}
    blocks = [[next(waiting[name]) for _ in range(args.queries)] for name in args.streams]
    others = [outcome for _, own in drawn.values() for outcome in own]
    if args.order == "smooth":
        fading, rising = blocks
        return smooth(fading, rising, seed), others
    return (sharp(blocks) if args.order == "sharp" else mixed(blocks, seed)), others


def _kept_run(
    args: argparse.Namespace,
    lab: Lab,
    arm: str,
    outcomes: Sequence[Outcome],
    others: Sequence[Outcome],
    seed: int,
    console: Console,
) -> Run:
    """One run, read from its file if it was done before."""
    learns = ARMS[arm].is_online or ARMS[arm].is_tuned
    trainer = lab.config.trainer.model_dump_json() if learns else ""
    asked = [
        arm,
        seed,
        args.temperature,
        [one.request_id for one in outcomes],
        len(others),
        lab.described(),
        trainer,
        args.recorded,
    ]
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    path = lab.config.state_dir / "adaptation" / "runs" / f"{slug(arm)}-{key}.json"
    if path.exists():
        return Run.from_json(json.loads(path.read_text()))
    if ARMS[arm].kind:
        _prepare(lab, console)
    scores: list[Score] = []
    started_s = time.perf_counter()

    def told(number: int, score: Score) -> None:
        scores.append(score)
        if number % args.window == 0:
            length = total(scores[-args.window :]).length
            took_s = time.perf_counter() - started_s
            console.print(f"{arm}, seed {seed}: {number} of {len(outcomes)}, length {length:.2f}, {took_s:.0f} s")

    run = run_arm(lab, arm, outcomes, others, seed, told)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(run.as_json()))
    scratch.replace(path)
    return run


def _prepare(lab: Lab, console: Console) -> None:
    prepare_backend(lab.config.target, lab.resolved.folder, may_serve_without=False, on_progress=console.print)


def _running(runs: Sequence[Run], window: int) -> list[float]:
    """Acceptance length over the last `window` queries of all seeds, for each query."""
    sums = [total([run.scores[number] for run in runs]) for number in range(len(runs[0].scores))]
    return [total(sums[max(0, end - window) : end]).length for end in range(1, len(sums) + 1)]


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("streams", nargs="+", metavar="STREAM", help="a packaged stream, or a JSONL file")
    shared.add_argument("--recorded", type=int, default=300, help="answers recorded of each stream")
    shared.add_argument("--max-tokens", type=int, default=96, help="longest answer")
    shared.add_argument("--temperature", type=float, default=0.0, choices=[0.0, 1.0], help="of the answers; 0: greedy")
    shared.add_argument("--length", type=int, default=4, help="speculation length")
    shared.add_argument("--target", default="smollm2", help="the target")
    shared.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"], help="of the target")
    shared.add_argument("--draft-vocab-tokens", type=int, default=8192, help="the feature drafter's vocabulary")
    shared.add_argument("--config", type=Path, help="TOML file; its trainer section is used")
    shared.add_argument("--state-dir", type=Path, help="for recorded answers and runs (default: osd's)")
    shared.add_argument("--queries", type=int, default=100, help="of each stream that is named")
    shared.add_argument("--steps-per-query", type=float, default=1.5, help="training steps after each query")
    shared.add_argument("--passes", type=float, default=8.0, help="over the other queries, of the arm tuned offline")
    shared.add_argument("--pool-bytes", type=int, default=4 << 20, help="memory for the suffix arm's recent answers")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record", parents=[shared], help="record the streams' answers")
    commands.add_parser("check", parents=[shared], help="hold the replay against a live run")
    run = commands.add_parser("run", parents=[shared], help="replay arms, and compare them")
    run.add_argument("--order", default="sharp", choices=["sharp", "smooth", "mixed"], help="how streams follow")
    run.add_argument(
        "--arms", default="frozen,online", help=f"with commas, the first is compared with: {', '.join(ARMS)}"
    )
    run.add_argument("--seeds", type=int, default=1, help="runs, each with its own order and draws")
    run.add_argument("--window", type=int, default=25, help="queries that a running figure is taken over")
    run.add_argument("--out", type=Path, help="folder for the JSON file and the plot")
    run.add_argument("--name", default="", help="of these files; default: the order")
    args = parser.parse_args(arguments)
    if args.command == "check" and args.temperature:
        parser.error("check compares greedy answers; leave --temperature out")
    if args.command == "run":
        args.arms = args.arms.split(",")
        if unknown := [arm for arm in args.arms if arm not in ARMS]:
            parser.error(f"--arms: unknown {unknown[0]!r}; known: {', '.join(ARMS)}")
        if args.order == "smooth" and len(args.streams) != 2:
            parser.error("--order smooth takes two streams")
    return args


if __name__ == "__main__":
    main()
