"""What a round takes in which rows of several domains are drafted for by their own drafters.

python -m benchmarks.mixed_domains [--rows 8] [--domains 1,2,4] [--json]

Every domain's drafter has the base drafter's weights, so acceptance is the same and only the time differs. One domain
is the base drafter alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from osd.assembly.drafter import DomainDrafters, open_store
from osd.assembly.engine import open_engine
from osd.config.settings import Config, default_state_dir, load_config
from osd.engine.engine import Engine
from osd.loading.resolve import resolve_target
from osd.ports.drafter import Swappable
from osd.records.drafter_id import drafter_name
from osd.records.query import Request, SamplingParams

_PROMPT_TOKENS = 32
_WARM_UP_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Mixed:
    """Rounds with one number of domains; medians in milliseconds."""

    domains: int
    rows: int
    draft_ms: float
    verify_ms: float
    step_ms: float


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--target", default="smollm2", help="as for osd serve")
    parser.add_argument("--state-dir", default="", help="where the drafter's versions are (default: the user's)")
    parser.add_argument("--rows", type=int, default=8, help="queries decoded at once")
    parser.add_argument("--domains", default="1,2,4", help="numbers of domains, with commas")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of each number of domains")
    parser.add_argument("--length", type=int, default=4, help="speculation length")
    parser.add_argument("--json", action="store_true", help="end with one JSON line on stdout; the rest goes to stderr")
    args = parser.parse_args()
    console = Console(stderr=args.json)
    numbers = [int(number) for number in args.domains.split(",")]
    config = load_config(
        flags={
            "state_dir": Path(args.state_dir) if args.state_dir else default_state_dir(),
            "target": {"model": args.target},
            "engine": {"max_slots": args.rows},
            "speculation": {"fixed_length": args.length},
            "drafter": {"max_domains": max(numbers), "suffix": False},
        }
    )
    engine = open_engine(config)
    _add_drafters(engine, config, max(numbers))
    measured = [_measure(engine, number, args.rows, args.rounds) for number in numbers]
    table = Table(title=f"rounds of {args.rows} rows, {args.length} tokens proposed")
    for column in ("domains", "draft ms", "verify ms", "step ms"):
        table.add_column(column, justify="right")
    for one in measured:
        table.add_row(str(one.domains), *(f"{ms:.2f}" for ms in (one.draft_ms, one.verify_ms, one.step_ms)))
    console.print(table)
    if args.json:
        rows = [asdict(one) for one in measured]
        print(json.dumps({"benchmark": "mixed_domains", "machine": describe_machine(), "rows": rows}))


def _add_drafters(engine: Engine, config: Config, number: int) -> None:
    """Give each domain the base drafter's version."""
    resolved = resolve_target(config.target.model, config.state_dir)
    store = open_store(config, resolved)
    base = engine.policy.arms[0].drafter
    manifest, state = store.load(base.id.version)
    drafters = DomainDrafters(config, resolved, engine.target.backend)
    for domain in range(number):
        drafter = drafters.make(drafter_name(config.drafter.kind, f"d{domain}"), manifest, engine.target)
        assert isinstance(drafter, Swappable)
        drafter.prepare(state, manifest.number)()
        engine.add_drafter(drafter, manifest)


def _measure(engine: Engine, num_domains: int, rows: int, rounds: int) -> Mixed:
    length = rounds * (engine.config.speculation.max_length + 1) + _PROMPT_TOKENS
    params = SamplingParams(
        temperature=0.0, ignore_eos=True, max_tokens=min(length, engine.target.max_context_tokens - _PROMPT_TOKENS)
    )
    for row in range(rows):
        domain = f"d{row % num_domains}" if num_domains > 1 else "default"
        prompt = tuple((row * 31 + token) % 1000 + 100 for token in range(_PROMPT_TOKENS))
        engine.submit(Request(request_id=str(row), prompt_ids=prompt, params=params, domain=domain))
    while len(engine.scheduler.decoding) < rows:
        engine.step()
    for _ in range(_WARM_UP_ROUNDS):
        engine.step()
    figures: list[tuple[float, float, float]] = []
    for _ in range(rounds):
        before, started_s = _times_s(engine), time.perf_counter()
        engine.step()
        step_ms = (time.perf_counter() - started_s) * 1e3
        draft_s, verify_s = (after - one for after, one in zip(_times_s(engine), before, strict=True))
        figures.append((draft_s * 1e3, verify_s * 1e3, step_ms))
    for row in range(rows):
        engine.cancel(str(row))
    draft_ms, verify_ms, step_ms = (statistics.median(column) for column in zip(*figures, strict=True))
    return Mixed(num_domains, rows, draft_ms, verify_ms, step_ms)


def _times_s(engine: Engine) -> tuple[Any, Any]:
    values = engine.counters.values
    return values["draft_seconds_total"], values["verify_seconds_total"]


if __name__ == "__main__":
    main()
