"""What grammars and adjusted logits cost a token: masks alone, and decoding with and without them, by queries at once.

    python -m benchmarks.grammar [--target smollm2] [--queries 1,16] [--tokens 64]

Masks are timed in CPU time of one thread, along a document. Decoding compares the same queries without a grammar and
with one that allows any text without quotes that is longer than the answers, so that all have as many tokens; and with
penalties and biases, whose rows are judged from a copy of their logits.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from osd.assembly.engine import open_engine
from osd.config.settings import load_config
from osd.engine.engine import Engine
from osd.records.asked.constraint import ConstraintSpec
from osd.records.query import Request, SamplingParams

_DOCUMENT = json.dumps(
    {
        "name": "get_weather",
        "arguments": {"city": "Köln", "days": 3, "units": "metric", "notes": ["no rain, please", "in the afternoon"]},
    },
    ensure_ascii=False,
)
_SCHEMAS = {
    "any object": {"type": "object"},
    "a tool call": {
        "type": "object",
        "properties": {
            "name": {"const": "get_weather"},
            "arguments": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 40},
                    "days": {"type": "integer", "minimum": 1, "maximum": 14},
                    "units": {"enum": ["metric", "imperial"]},
                    "notes": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
                },
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    },
}
_LONG = ConstraintSpec(kind="regex", text='[^"]{4000,}')
_ADJUSTED: dict[str, Any] = {
    "logit_bias": ((0, -1.0), (1, -1.0)),
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.05,
}
_PROMPT = "A story of the sea, as long as you like:\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--queries", default="1,16", help="numbers of queries at once, with commas")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    args = parser.parse_args(arguments)
    queries = [int(num) for num in args.queries.split(",")]
    flags = {"target": {"model": args.target, "wait_for_kernels": True}, "engine": {"max_slots": max(queries)}}
    engine = open_engine(load_config(flags=flags))
    masks = [_masks(engine, name, schema) for name, schema in _SCHEMAS.items()]
    decoding = [_decode(engine, num, args.tokens, length) for num in queries for length in (0, None)]
    _print("masks, microseconds of CPU time", masks)
    _print("decoding, tokens/s", decoding)
    result = {"benchmark": "grammar", "target": args.target, "machine": describe_machine()}
    print(json.dumps(result | {"masks": masks, "decode": decoding}))


def _masks(engine: Engine, name: str, schema: object) -> dict[str, float | str]:
    spec = ConstraintSpec(kind="json_schema", text=json.dumps(schema))
    started_s = time.thread_time()
    row = engine.grammars.compile(spec)
    compile_s = time.thread_time() - started_s
    ids = engine.codec.encode_text(_DOCUMENT, add_special_tokens=False)
    figures: dict[str, float | str] = {"schema": name, "tokens": len(ids), "compile_us": round(1e6 * compile_s, 1)}
    for run in ("first", "again"):
        row, took_s = engine.grammars.compile(spec), 0.0
        for token in ids:
            started_s = time.thread_time()
            row.allowed(())
            row.advance([token])
            took_s += time.thread_time() - started_s
        figures[f"{run}_us"] = round(1e6 * took_s / len(ids), 1)
    started_s = time.thread_time()
    engine.grammars.compile(spec).allowed(ids)
    figures["proposed_us"] = round(1e6 * (time.thread_time() - started_s) / len(ids), 1)
    return figures


def _decode(engine: Engine, num_queries: int, num_tokens: int, length: int | None) -> dict[str, float | str]:
    figures: dict[str, float | str] = {"queries": num_queries, "speculation": "none" if length == 0 else "chosen"}
    cases: list[tuple[str, ConstraintSpec | None, dict[str, Any]]] = [
        ("free", None, {}),
        ("constrained", _LONG, {}),
        ("adjusted", None, _ADJUSTED),
    ]
    for kind, spec, adjusted in cases:
        params = SamplingParams(max_tokens=num_tokens, seed=1, ignore_eos=spec is None, **adjusted)
        for is_measured in (False, True):
            tokens_s = _tokens_per_s(engine, num_queries, params, length, spec)
            if is_measured:
                figures[kind] = round(tokens_s, 1)
    return figures


def _tokens_per_s(
    engine: Engine, num_queries: int, params: SamplingParams, length: int | None, spec: ConstraintSpec | None
) -> float:
    prompt_ids = engine.codec.encode_text(_PROMPT)
    for number in range(num_queries):
        request = Request(
            request_id=str(number), prompt_ids=prompt_ids, params=params, constraint=spec, speculation_length=length
        )
        engine.submit(request)
    num_decoded, started_s = 0, time.perf_counter()
    while engine.has_work:
        num_decoded += sum(len(delta.token_ids) for delta in engine.step())
    return num_decoded / (time.perf_counter() - started_s)


def _print(title: str, rows: Sequence[dict[str, float | str]]) -> None:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
