"""What it costs a round to record the target's distributions after rejected tokens, by the number of accepted tokens.

    python -m benchmarks.record_cost [--rows 1] [--length 4] [--top-k 32]

Times the ranking of a round's logits (random ones of the target's size), which is all that the engine's thread does for
it but a few slices, at committed positions alone and with those after rejected tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from osd.assembly.kernels import backend_for
from osd.verify.logits import Logits
from osd.verify.top_logprobs import top_logprobs

_WARM_UP = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1, help="queries in the round")
    parser.add_argument("--length", type=int, default=4, help="speculation length")
    parser.add_argument("--top-k", type=int, default=32, help="log-probabilities kept at committed positions")
    parser.add_argument("--vocab-tokens", type=int, default=49_152, help="of the target")
    parser.add_argument("--rounds", type=int, default=200, help="rounds timed of each kind")
    parser.add_argument("--device", default="cpu", help="'cpu' or 'cuda'")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    shape = args.rows, args.length + 1, args.vocab_tokens
    random_BQV = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(3)
    logits = backend_for(device).logits(random_BQV.to(device, torch.bfloat16))
    rows = [_measure(logits, args, accepted) for accepted in range(args.length)]
    table = Table(title=f"ranking of one round, microseconds (median), {args.rows} rows, length {args.length}")
    for column in ("accepted", "committed only", "and after rejected tokens"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:g}" for value in row.values()))
    Console(stderr=True).print(table)
    settings = {name: value for name, value in vars(args).items() if name != "device"}
    print(json.dumps({"benchmark": "record_cost", "machine": describe_machine(), **settings, "by_accepted": rows}))


def _measure(logits: Logits, args: argparse.Namespace, accepted: int) -> dict[str, float]:
    tokens = [[0] * (accepted + 1)] * args.rows
    return {
        "accepted": accepted,
        "committed_us": _median_us(logits, tokens, args, [0] * args.rows),
        "with_rejected_us": _median_us(logits, tokens, args, [args.length - accepted] * args.rows),
    }


def _median_us(logits: Logits, tokens: list[list[int]], args: argparse.Namespace, num_further: list[int]) -> float:
    times = []
    for _ in range(_WARM_UP + args.rounds):
        started_s = time.perf_counter()
        top_logprobs(logits, tokens, args.top_k, num_further)[0].of_round.wait()
        times.append(time.perf_counter() - started_s)
    return round(1e6 * statistics.median(times[_WARM_UP:]), 1)


if __name__ == "__main__":
    main()
