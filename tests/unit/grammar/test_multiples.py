"""`multipleOf`: what is bounded, since a grammar of multiples takes memory in proportion to the number."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from osd.grammar.multiples import MAX_MULTIPLE, common_multiple, common_multiple_in_text

_COMPILE = """
import json, resource, sys
from osd.grammar.compiler import GrammarCompiler
from osd.records.asked.constraint import ConstraintSpec
from osd.text.codec import TextCodec
from tests.kit.tokenizer_kit import tokenizer_of
codec = TextCodec(tokenizer_of("byte-level"), model_id="m", context_tokens=9)
compiler = GrammarCompiler(codec, [codec.tokenizer.eos_token_id])
compiler.compile(ConstraintSpec(kind="regex", text="a"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
compiler.compile(ConstraintSpec(kind="json_schema", text=sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("schema", "multiple"),
    [
        ({"type": "integer"}, 1),
        ({"multipleOf": 5}, 5),
        ({"multipleOf": 0.01}, 1),
        ({"multipleOf": 1e9}, 1),
        ({"properties": {"a": {"multipleOf": 6}, "b": {"anyOf": [{"multipleOf": 0.04}]}}}, 12),
        ({"multipleOf": True, "items": {"multipleOf": "x"}}, 1),
        ({"multipleOf": 0}, 1),
    ],
)
def test_multiples_are_found_wherever_they_are(schema: Any, multiple: int) -> None:
    assert common_multiple(schema) == multiple
    assert common_multiple_in_text(f"start: %json {json.dumps(schema)}") == multiple


def test_a_key_may_be_escaped() -> None:
    assert common_multiple_in_text('start: %json {"multiple\\u004ff" : 7}') == 7


@pytest.mark.slow
def test_the_largest_that_is_taken_needs_little_memory() -> None:
    """99,991 is a prime whose multiples need nearly as many states as there can be; some 50 MiB were measured."""
    schema = {"type": "integer", "multipleOf": 99_991}
    assert common_multiple(schema) <= MAX_MULTIPLE
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE, json.dumps(schema)], capture_output=True, text=True, timeout=240, check=True
    )
    assert int(done.stdout) < 200 << 10, "kiB"
