"""How well unlabelled prompts find their domains: the router learns from some prompts of each stream, guesses others.

    python -m benchmarks.router gsm8k.jsonl spider.jsonl mbpp.jsonl [--learn 100] [--guess 200] [--unknown everyday]

Streams are named as for `benchmarks.adaptation`. Prompts of the `--unknown` streams, and each stream in turn while only
the others are known, should be routed nowhere.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.adaptation.streams import read_stream
from benchmarks.machine import describe_machine
from osd.config.settings import default_state_dir
from osd.config.target import TargetConfig
from osd.drafters.router import DomainRouter
from osd.loading.resolve import resolve_target
from osd.text.codec import TextCodec

Prompts = Mapping[str, Sequence[tuple[int, ...]]]
"""Token ids by stream."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("streams", nargs="+", help="each is a domain")
    parser.add_argument("--unknown", default="everyday", help="streams of no known domain, with commas")
    parser.add_argument("--learn", type=int, default=100, help="prompts to learn from, of each stream")
    parser.add_argument("--guess", type=int, default=200, help="further prompts to guess, of each stream")
    parser.add_argument("--target", default="smollm2", help="whose tokenizer and chat template are used")
    parser.add_argument("--json", action="store_true", help="end with one JSON line on stdout; the rest goes to stderr")
    args = parser.parse_args(arguments)
    resolved = resolve_target(args.target, default_state_dir())
    codec = TextCodec.configured(resolved.folder, args.target, TargetConfig())
    known = {Path(name).stem: _read(name, args.learn + args.guess, codec) for name in args.streams}
    unknown = {name: _read(name, args.guess, codec) for name in args.unknown.split(",") if name}
    to_learn = {name: prompts[: args.learn] for name, prompts in known.items()}
    to_guess = {name: prompts[args.learn :] for name, prompts in known.items()}
    router, learn_us = _taught(to_learn)
    rows = [_guess(router, name, prompts, name) for name, prompts in to_guess.items()]
    rows += [_guess(router, f"{name} (unknown)", prompts, None) for name, prompts in unknown.items()]
    for name in to_guess if len(known) > 1 else ():
        others, _ = _taught({other: prompts for other, prompts in to_learn.items() if other != name})
        rows.append(_guess(others, f"{name} (unknown)", to_guess[name], None))
    table = Table(title=f"learnt from {args.learn} prompts each, {learn_us:.0f} us a prompt")
    for column in ("prompts of", "routed right", "to none", "wrong", "us a prompt"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.0f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(stderr=args.json).print(table)
    if args.json:
        figures = {"learnt": args.learn, "learn_us": learn_us, "rows": rows}
        print(json.dumps({"benchmark": "router", "machine": describe_machine(), **figures}))


def _read(name: str, number: int, codec: TextCodec) -> list[tuple[int, ...]]:
    return [codec.encode_chat(prompt.messages) for prompt in read_stream(name, number)]


def _taught(prompts: Prompts) -> tuple[DomainRouter, float]:
    """A router that has learnt the prompts in random order, and the microseconds that one took."""
    router = DomainRouter()
    order = [(name, prompt) for name, own in prompts.items() for prompt in own]
    random.Random(0).shuffle(order)
    started_s = time.thread_time()
    for name, prompt in order:
        router.learn(name, prompt)
    return router, 1e6 * (time.thread_time() - started_s) / len(order)


def _guess(
    router: DomainRouter, title: str, prompts: Sequence[tuple[int, ...]], right: str | None
) -> dict[str, float | str]:
    started_s = time.thread_time()
    found = Counter(router.route(prompt) for prompt in prompts)
    took_us = 1e6 * (time.thread_time() - started_s) / max(len(prompts), 1)
    num_right = 0 if right is None else found[right]
    wrong = len(prompts) - num_right - found[None]
    return {"stream": title, "right": num_right, "none": found[None], "wrong": wrong, "guess_us": took_us}


if __name__ == "__main__":
    main()
