"""What the shared parts of a service cost, measured here: Redis, the distiller's intake, the supervisor, the router."""

from __future__ import annotations

import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from actors.serve.prefixes import Candidate, HeldPrefixes, in_order, num_shared
from actors.supervisor.supervisor import SupervisorActor
from osd.config.settings import Config
from osd.fleet.heartbeat import EngineReport, QueryRounds
from osd.io.codec import encode
from osd.io.embedded_redis import EmbeddedRedis
from osd.io.outcome_stream import RedisOutcomeStream
from osd.monitor.buckets import Figures, Series
from osd.records.drafter_id import DrafterId
from osd.records.outcome import BONUS, Outcome, Round
from osd.records.outcome_arrays import pack_hidden, pack_top_k

T = TypeVar("T")
_NUM_OUTCOMES = 200
_NUM_WRITERS = 4
_NUM_REPEATS = 50


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds and bytes of the parts that all engines share."""

    outcome_bytes: float
    put_s: float
    """Redis: its processor's time for one outcome written, the disk's left out."""
    read_s: float
    """Redis and the distiller: one outcome read, decoded and acknowledged."""
    report_s: float
    """The supervisor: one report answered, with pickling; Ray's own cost of a call comes on top."""
    route_s: float
    """A router: one choice among engines, by engine."""
    weights_bytes: float
    """A drafter version."""


def measure(*, prompt_tokens: int, output_tokens: int, hidden_size: int, weights_bytes: float) -> Costs:
    """Measure with outcomes of this size, in a Redis of its own."""
    outcomes = [_outcome(number, prompt_tokens, output_tokens, hidden_size) for number in range(_NUM_OUTCOMES)]
    outcome_bytes = statistics.mean(len(encode(outcome)) for outcome in outcomes)
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedRedis(Path(folder), max_memory_bytes=1 << 30)
        server.start()
        stream = RedisOutcomeStream(server.url, "outcomes", max_entries=10_000, max_bytes=512 << 20)
        try:
            redis, used_s = psutil.Process(server.pid), 0.0
            used_s -= _processor_s(redis)
            with ThreadPoolExecutor(_NUM_WRITERS) as writers:
                list(writers.map(stream.put, outcomes))
            used_s += _processor_s(redis)
            put_s = used_s / _NUM_OUTCOMES
            read_s = _timed(lambda: _read_all(stream)) / _NUM_OUTCOMES
        finally:
            stream.close()
            server.stop()
    return Costs(outcome_bytes, put_s, read_s, _report_s(), _route_s(), weights_bytes)


def _outcome(number: int, prompt_tokens: int, output_tokens: int, hidden_size: int) -> Outcome:
    generator = torch.Generator().manual_seed(number)
    config = Config().outcomes
    hidden_start = max(prompt_tokens - config.prompt_hidden_tokens, 0)
    ids_OK = torch.randint(0, 50_000, (output_tokens, config.top_k), generator=generator, dtype=torch.int32)
    logprobs_OK = -torch.rand((output_tokens, config.top_k), generator=generator)
    top_ids, top_logprobs, top_k = pack_top_k(ids_OK, logprobs_OK)
    num_hidden = prompt_tokens + output_tokens - 1 - hidden_start
    return Outcome(
        request_id=f"q{number}",
        domain="default",
        target_id="simulated",
        drafter_kind="feature",
        created_at_s=0.0,
        prompt_ids=tuple(range(prompt_tokens)),
        output_ids=tuple(range(output_tokens)),
        output_kinds=bytes([BONUS] * output_tokens),
        rounds=(Round(1, 3, 1, "feature"),) * (output_tokens // 2),
        top_k=top_k,
        top_ids=top_ids,
        top_logprobs=top_logprobs,
        hidden_size=hidden_size,
        hidden_start=hidden_start,
        hidden=pack_hidden(torch.randn((num_hidden, hidden_size), generator=generator)),
        engine_id="engine",
    )


def _processor_s(process: psutil.Process) -> float:
    """Of Redis, which serves one command at a time; what its clients do is theirs, as in a service of many engines."""
    times = process.cpu_times()
    return times.user + times.system


def _read_all(stream: RedisOutcomeStream) -> None:
    while entries := stream.read(64, 0):
        stream.ack([position for position, _ in entries])


def _report_s() -> float:
    """Of a busy engine with sixteen rows and eight domains."""
    supervisor = SupervisorActor({})
    drafter = DrafterId("feature", 3)
    reports = [
        EngineReport(
            engine_id=f"engine {number % 100}",
            incarnation="a",
            number=number,
            is_full=False,
            at_s=time.time(),
            node="node",
            device="cpu",
            pid=1,
            target_id="simulated",
            drafter=drafter,
            utilisation=0.9,
            running=16,
            waiting=0,
            free_rows=0,
            paused_s=0.0,
            served=tuple((Series(f"domain {one}", "feature", 3), _figures(number)) for one in range(8)),
            rounds=tuple(QueryRounds(3, f"q{number}-{row}", 20, 11) for row in range(16)),
        )
        for number in range(_NUM_REPEATS * 10)
    ]

    def answer(report: EngineReport) -> None:
        pickle.dumps(supervisor.report(pickle.loads(pickle.dumps(report))))

    try:
        return _timed(lambda: _each(answer, reports)) / len(reports)
    finally:
        supervisor.close()


def _figures(number: int) -> Figures:
    """Of a domain and drafter version, after so many rounds of three proposed tokens."""
    positions = {f"{what}_at_{position}": float(number) for what in ("proposed", "accepted") for position in (1, 2, 3)}
    return dict.fromkeys(("rounds", "proposed", "accepted", "committed", "length_3"), float(number)) | positions


def _route_s(num_engines: int = 200) -> float:
    """By engine: how many blocks of the prompt it holds, and its place in the order."""
    prefix, held = tuple(range(16)), HeldPrefixes(16)
    for first in range(0, 16 * 100, 100):
        held.add(tuple(range(first, first + 16)))
    blocks = held.blocks()

    def route() -> None:
        in_order([Candidate(one, one % 7, num_shared(prefix, blocks)) for one in range(num_engines)], 16)

    return _timed(lambda: _each(lambda _: route(), range(_NUM_REPEATS))) / _NUM_REPEATS / num_engines


def _each(work: Callable[[T], None], things: Sequence[T]) -> None:
    for thing in things:
        work(thing)


def _timed(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s
