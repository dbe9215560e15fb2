"""What the suffix drafter costs a token, by the size of its pool: CPU time of one thread, no model.

    python -m benchmarks.suffix_cost [--pool-tokens 10000,100000]

Answers are random token ids with a long-tailed distribution, so that contexts recur as they do in text.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from osd.drafters.suffix.pool import AnswerPool
from osd.drafters.suffix.query import SuffixQuery

_ANSWER_TOKENS = 100
_PROMPT_TOKENS = 500
_NUM_QUERIES = 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pool-tokens", default="10000,100000,400000", help="sizes of the pool, with commas")
    args = parser.parse_args(arguments)
    rows = [_measure(int(size)) for size in args.pool_tokens.split(",")]
    table = Table(title="suffix drafter, microseconds of CPU time")
    for column in ("tokens in the pool", "MB", "add, a token", "read a prompt, a token", "propose 4, a round"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" for value in row.values()))
    Console(stderr=True).print(table)
    print(json.dumps({"benchmark": "suffix_cost", "machine": describe_machine(), "pools": rows}))


def _measure(pool_tokens: int) -> dict[str, float]:
    rng = random.Random(0)
    pool = AnswerPool(10 * pool_tokens + 4096)
    answers = [_text(rng, _ANSWER_TOKENS) for _ in range(pool_tokens // _ANSWER_TOKENS)]
    for answer in answers[:-50]:
        pool.add("", answer)
    started_s = time.thread_time()
    for answer in answers[-50:]:
        pool.add("", answer)
    add_us = 1e6 * (time.thread_time() - started_s) / (50 * _ANSWER_TOKENS)
    prompts = [_text(rng, _PROMPT_TOKENS) for _ in range(_NUM_QUERIES)]
    started_s = time.thread_time()
    queries = [SuffixQuery(pool, "", prompt) for prompt in prompts]
    read_us = 1e6 * (time.thread_time() - started_s) / (_NUM_QUERIES * _PROMPT_TOKENS)
    started_s = time.thread_time()
    for query in queries:
        for token in _text(rng, _ANSWER_TOKENS):
            query.extend([token])
            query.propose(4)
    propose_us = 1e6 * (time.thread_time() - started_s) / (_NUM_QUERIES * _ANSWER_TOKENS)
    return {
        "pool_tokens": pool.num_tokens,
        "megabytes": pool.size_bytes / 1e6,
        "add_us": round(add_us, 1),
        "read_us": round(read_us, 1),
        "propose_us": round(propose_us, 1),
    }


def _text(rng: random.Random, num_tokens: int) -> list[int]:
    return [int(rng.paretovariate(0.7)) % 49_152 for _ in range(num_tokens)]


if __name__ == "__main__":
    main()
