"""Tokens a round commits under a grammar, with forbidden proposals drawn again and with the rounds cut there.

    OSD_TARGET__THREADS=1 python -m benchmarks.drawn_again [--target smollm2] [--prompts 20] [--tokens 96]

Prompts are BFCL's, and each answer is held to a JSON Schema of calls of its functions. Every query is decoded greedily
and at temperature 1, with four tokens proposed a round, by the drafter alone and with the lookup beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks.machine import describe_machine
from benchmarks.prompts import tool_call_prompts
from osd.assembly.engine import open_engine
from osd.config.settings import load_config
from osd.engine.engine import Engine
from osd.grammar.source import check
from osd.records.asked.constraint import ConstraintSpec
from osd.records.errors import ConstraintRefusedError
from osd.records.query import QueryStats, Request, SamplingParams
from osd.text.prompt_file import Messages

_LENGTH = 4
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}
"""BFCL's names of types, where they are not JSON Schema's; None: any type."""
_KEPT = ("type", "properties", "required", "items", "enum")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=96, help="most tokens of an answer")
    args = parser.parse_args(arguments)
    asked = list(_asked(args.prompts))
    rows = []
    for with_lookup in (False, True):
        flags = {"target": {"model": args.target, "wait_for_kernels": True}, "drafter": {"suffix": with_lookup}}
        engine = open_engine(load_config(flags=flags))
        for temperature in (0.0, 1.0):
            row: dict[str, Any] = {"lookup": with_lookup, "temperature": temperature}
            for draws_again in (False, True):
                with _drawing(again=draws_again):
                    row |= _counts(engine, asked, temperature, args.tokens, "again" if draws_again else "cut")
            rows.append(row)
            print(row, file=sys.stderr)
    result = {"benchmark": "drawn_again", "target": args.target, "machine": describe_machine()}
    print(json.dumps(result | {"prompts": len(asked), "length": _LENGTH, "rows": rows}))


@contextmanager
def _drawing(*, again: bool) -> Iterator[None]:
    """False decodes as before forbidden proposals were drawn again: a round ends at the first of them."""
    with ExitStack() as patches:
        if not again:
            patches.enter_context(patch("osd.engine.round.drawn_again", lambda proposal, *_: proposal))
            patches.enter_context(patch("osd.engine.round._drafted_by", lambda sequence: sequence.request.params))
        yield


def _asked(num_prompts: int) -> Iterator[tuple[Messages, ConstraintSpec]]:
    """Prompts with the form of their answers, without those whose schema is refused."""
    for messages in tool_call_prompts():
        if not num_prompts:
            return
        functions = json.loads(messages[0]["content"].partition("The functions you have:\n")[2])
        spec = ConstraintSpec(kind="json_schema", text=json.dumps(_calls(functions)))
        try:
            check(spec)
        except ConstraintRefusedError:
            continue
        num_prompts -= 1
        yield messages, spec


def _calls(functions: list[dict[str, Any]]) -> dict[str, Any]:
    """The schema of a list of calls."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": one["name"]}, "arguments": schema_of(one["parameters"])},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for one in functions
    ]
    return {"type": "array", "items": {"anyOf": calls}, "minItems": 1, "maxItems": 3}


def schema_of(described: dict[str, Any]) -> dict[str, Any]:
    """BFCL's description of a type as a JSON Schema."""
    schema: dict[str, Any] = {name: described[name] for name in _KEPT if name in described}
    if (kind := _TYPES.get(schema.get("type", "any"), schema.get("type"))) is None:
        return {}
    schema["type"] = kind
    if "properties" in schema:
        schema["properties"] = {name: schema_of(inner) for name, inner in schema["properties"].items()}
        schema["additionalProperties"] = False
    if "items" in schema:
        schema["items"] = schema_of(schema["items"])
    return schema


def _counts(
    engine: Engine,
    asked: Sequence[tuple[Messages, ConstraintSpec]],
    temperature: float,
    num_tokens: int,
    name: str,
) -> dict[str, Any]:
    """Totals over all prompts, which are answered one after the other."""
    stats: list[QueryStats] = []
    for number, (messages, spec) in enumerate(asked):
        request = Request(
            request_id=f"{name}-{number}",
            prompt_ids=engine.codec.encode_chat(messages),
            params=SamplingParams(max_tokens=num_tokens, temperature=temperature, seed=number),
            constraint=spec,
            speculation_length=_LENGTH,
        )
        engine.submit(request)
        while engine.has_work:
            stats += [delta.stats for delta in engine.step() if delta.stats is not None]
    rounds, committed, proposed, accepted = (
        sum(getattr(one, field) for one in stats) for field in ("rounds", "committed", "proposed", "accepted")
    )
    return {
        f"{name}: rounds": rounds,
        f"{name}: acceptance length": round(committed / rounds, 3),
        f"{name}: proposed": proposed,
        f"{name}: accepted": accepted,
    }


if __name__ == "__main__":
    main()
