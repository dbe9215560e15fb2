"""The cost of a hot swap and of recording outcomes for the engine, in ms and in steps.

python -m benchmarks.swap [--rows 1,16,64] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.instruments import DiscardingRecorder
from benchmarks.machine import describe_machine
from osd.assembly.drafter import open_store
from osd.assembly.engine import open_engine
from osd.config.settings import Config, default_state_dir, load_config
from osd.engine.engine import Engine
from osd.loading.resolve import configured_target
from osd.ports.drafter import SwapIn, Swappable
from osd.records.query import Request, SamplingParams
from osd.records.version import WeightManifest

_STEPS_BETWEEN_SWAPS = 6
_PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Stall:
    """The cost of swaps with one number of rows."""

    rows: int
    step_ms: float
    """Median duration of a step without a swap."""
    prepare_ms: float
    """Median time in which another thread checks and prepares a version, while steps go on."""
    longest_step_ms: float
    """Median, over swaps, of the longest of those steps."""
    slowed_ms: float
    """Median, over swaps, of the time by which those steps took longer, in total."""
    swap_ms: float
    """Median duration of a swap, which happens between two steps."""
    next_step_ms: float
    """Median duration of the step right after a swap."""
    record_ms: float
    """What recording adds to a step: the median step with a recorder less that without."""
    finish_ms: float
    """Time on the engine's thread to hand over one query's outcome."""

    @property
    def steps(self) -> float:
        """The stall in steps: the swap, plus the time by which the next step is longer."""
        return (self.swap_ms + max(self.next_step_ms - self.step_ms, 0.0)) / self.step_ms


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--target", default="smollm2", help="as for osd serve")
    parser.add_argument("--state-dir", default="", help="where the drafter's versions are (default: the user's)")
    parser.add_argument("--rows", default="1,16,64", help="queries decoded at once, with commas")
    parser.add_argument("--swaps", type=int, default=8, help="swaps a number of rows")
    parser.add_argument("--json", action="store_true", help="end with one JSON line on stdout; the rest goes to stderr")
    args = parser.parse_args()
    console = Console(stderr=args.json)
    sections: dict[str, Any] = {"target": {"model": args.target}}
    sections["state_dir"] = Path(args.state_dir) if args.state_dir else default_state_dir()
    stalls = []
    for rows in (int(number) for number in args.rows.split(",")):
        config = load_config(flags={**sections, "engine": {"max_slots": rows}, "speculation": {"fixed_length": 2}})
        stalls.append(_measure(config, rows, args.swaps))
    table = Table(title="cost of a hot swap, and of recording")
    columns = (
        "rows",
        "step ms",
        "prepared beside ms",
        "longest step ms",
        "swap ms",
        "step after ms",
        "stall in steps",
        "recording ms a step",
        "outcome ms a query",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for stall in stalls:
        figures = (
            stall.step_ms,
            stall.prepare_ms,
            stall.longest_step_ms,
            stall.swap_ms,
            stall.next_step_ms,
            stall.steps,
            stall.record_ms,
            stall.finish_ms,
        )
        table.add_row(str(stall.rows), *(f"{figure:.2f}" for figure in figures))
    console.print(table)
    if args.json:
        rows_report = [{**{name: getattr(s, name) for name in s.__slots__}, "steps": s.steps} for s in stalls]
        print(json.dumps({"benchmark": "swap", "machine": describe_machine(), "rows": rows_report}))


def _measure(config: Config, rows: int, swaps: int) -> Stall:
    engine, recording = open_engine(config), open_engine(config, recorder=DiscardingRecorder())
    resolved = configured_target(config)
    store = open_store(config, resolved)
    latest = store.latest()
    assert latest is not None
    manifest, state = store.load(latest.number)
    for one in (engine, recording):
        _fill(one, rows, swaps)
    plain, recorded, prepared, swap_ms, next_ms = [], [], [], [], []
    watcher = ThreadPoolExecutor(1)
    for _ in range(swaps):
        for _ in range(_STEPS_BETWEEN_SWAPS):
            plain.append(_timed_ms(engine.step))
            recorded.append(_timed_ms(recording.step))
        beside = _prepare(watcher, engine, manifest, state)
        prepared.append(beside)
        swap_ms.append(_timed_ms(partial(engine.load_drafter, manifest.kind, manifest, beside.swap_in)))
        next_ms.append(_timed_ms(engine.step))
    with_outcome = _timed_ms(lambda: recording.cancel("0"))
    without = _timed_ms(lambda: engine.cancel("0"))
    step_ms = statistics.median(plain)
    return Stall(
        rows=rows,
        step_ms=step_ms,
        prepare_ms=statistics.median(one.took_ms for one in prepared),
        longest_step_ms=statistics.median(max(one.steps_ms) for one in prepared),
        slowed_ms=statistics.median(sum(ms - step_ms for ms in one.steps_ms) for one in prepared),
        swap_ms=statistics.median(swap_ms),
        next_step_ms=statistics.median(next_ms),
        record_ms=statistics.median(recorded) - step_ms,
        finish_ms=max(with_outcome - without, 0.0),
    )


class _Prepared(NamedTuple):
    """A version that was prepared as in service."""

    swap_in: SwapIn
    took_ms: float
    steps_ms: list[float]
    """Durations of the steps meanwhile."""


def _prepare(
    watcher: ThreadPoolExecutor, engine: Engine, manifest: WeightManifest, state: dict[str, Tensor]
) -> _Prepared:
    drafter = engine.policy.arms[0].drafter
    assert isinstance(drafter, Swappable)

    def prepare() -> tuple[SwapIn, float]:
        started_s = time.perf_counter()
        swap_in = drafter.prepare(state, manifest.number)
        return swap_in, (time.perf_counter() - started_s) * 1e3

    future, steps_ms = watcher.submit(prepare), []
    while not future.done():
        steps_ms.append(_timed_ms(engine.step))
    return _Prepared(*future.result(), steps_ms)


def _fill(engine: Engine, rows: int, swaps: int) -> None:
    """Fill every row with a decoding query that is long enough for all steps to come."""
    max_tokens = 4 * swaps * (2 * _STEPS_BETWEEN_SWAPS + 2) + 40
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    for row in range(rows):
        ids = tuple(range(100 + row, 100 + row + _PROMPT_TOKENS))
        engine.submit(Request(request_id=str(row), prompt_ids=ids, params=params))
    while engine.scheduler.waiting or engine.scheduler.prefilling:
        engine.step()
    for _ in range(5):
        engine.step()


def _timed_ms(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return (time.perf_counter() - started_s) * 1e3


if __name__ == "__main__":
    main()
