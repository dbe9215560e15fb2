"""Duration of a CPU's pass by number of tokens and instruction set, and the cost of a proposed token.

Uses a model of SmolLM2-135M's shape with random weights, on which durations do not depend. Lengths take turns, and the
fastest pass of each counts, so that other load on the machine is not measured. `--instructions` compiles for fewer
instructions than the processor has.

Run it as `python -m benchmarks.pass_by_rows --instructions AVX2`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

_TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
_PROPOSED = (1, 2, 3, 4)
_CONTEXT_TOKENS = 100
_COMPILE_FOR = {
    "native": {},
    "AVX-512": {
        "NUMBA_CPU_NAME": "skylake-avx512",
        "NUMBA_CPU_FEATURES": "+avx512f,-prefer-256-bit",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    },
    "AVX2": {"NUMBA_CPU_NAME": "znver1", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}


def main() -> None:
    """Measure and print."""
    options = _arguments()
    os.environ.update(_COMPILE_FOR[options.instructions])  # read when torch and numba are imported
    import torch

    from benchmarks.machine import describe_machine
    from benchmarks.random_models import SHAPES
    from benchmarks.shape_bench import feature_drafter

    if options.threads:
        torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"machine": describe_machine(), "threads": torch.get_num_threads(), "runs": []}
    for dtype in options.dtypes:
        shape = replace(SHAPES[options.shape], dtype=torch.float32 if dtype == "float32" else torch.bfloat16)
        target = _target(shape, dtype)
        passes_ms = _fastest_ms({num: partial(_read, target, num) for num in _TOKENS}, options.repeats)
        run = {"computes": target.lm.computes, "dtype": dtype, "pass_ms_by_tokens": passes_ms}
        results["runs"].append(run)
        print(run["computes"])
        print("  tokens       " + "".join(f"{num:8d}" for num in _TOKENS))
        print("  ms a pass    " + "".join(f"{passes_ms[num]:8.2f}" for num in _TOKENS))
        print("  of 1 token's " + "".join(f"{passes_ms[num] / passes_ms[1]:8.2f}" for num in _TOKENS))
        if options.passes_only:
            continue
        drafter = feature_drafter(target, shape, num_slots=1, length=max(_PROPOSED), seed=0)
        drafting_ms = _fastest_ms({num: partial(_propose, target, drafter, num) for num in _PROPOSED}, options.repeats)
        first, last = _PROPOSED[0], _PROPOSED[-1]
        token_ms = (drafting_ms[last] - drafting_ms[first]) / (last - first)
        share = token_ms / passes_ms[1]
        run |= {
            "drafting_ms_by_tokens": drafting_ms,
            "proposed_token_ms": round(token_ms, 3),
            "of_a_pass": round(share, 4),
        }
        print(f"  a proposed token: {token_ms:.2f} ms, {share:.1%} of a pass over one token")
    print(json.dumps(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--instructions", choices=tuple(_COMPILE_FOR), default="native", help="to compile for")
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "int4", "float32"), default=["bfloat16", "int4"])
    parser.add_argument("--shape", choices=("tiny", "135m", "1b"), default="135m")
    parser.add_argument("--repeats", type=int, default=20, help="passes over each number of tokens")
    parser.add_argument("--passes-only", action="store_true", help="leave out what a drafter's tokens cost")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    return parser.parse_args()


def _target(shape: Any, dtype: str) -> Any:
    """A target with one row."""
    import torch

    from benchmarks.random_models import random_llama
    from osd.assembly.kernels import backend_for
    from osd.models.target import Target

    device = torch.device("cpu")

    return Target(
        random_llama(shape, device),
        backend_for(device),
        target_id="random",
        eos_ids=frozenset(),
        num_slots=1,
        max_context_tokens=256,
        max_new_tokens=128,
        max_round_tokens=max(_PROPOSED) + 1,
        is_int4=dtype == "int4",
    )


def _read(target: Any, num_tokens: int) -> Callable[[], object]:
    import torch

    ids_BQ = torch.zeros(1, num_tokens, dtype=torch.long)
    return lambda: target.lm.forward(0, ids_BQ, [_CONTEXT_TOKENS])


def _propose(target: Any, drafter: Any, num_tokens: int) -> Callable[[], object]:
    """Proposals, each after the target read one more token, as in real rounds."""
    from osd.records.proposal import DraftBatch
    from osd.records.query import SamplingParams

    def batch(context: int, length: int) -> DraftBatch:
        return DraftBatch(
            tokens_SL=target.tokens_SL,
            hidden_SLH=target.hidden_SLH,
            num_tokens=[context],
            lengths=[length],
            params=[SamplingParams(temperature=0.0)],
            generators=[Random()],
        )

    drafter.reset_row(0)
    drafter.propose(batch(_CONTEXT_TOKENS, 1))
    return lambda: drafter.propose(batch(_CONTEXT_TOKENS + 1, num_tokens))


def _fastest_ms(works: dict[int, Callable[[], Callable[[], object]]], repeats: int) -> dict[int, float]:
    """By length, the shortest duration in ms; preparation is not timed."""
    fastest_ms = dict.fromkeys(works, float("inf"))
    for _ in range(repeats):
        for number, prepare in works.items():
            work = prepare()
            started_s = time.perf_counter()
            work()
            fastest_ms[number] = min(fastest_ms[number], (time.perf_counter() - started_s) * 1e3)
    return {number: round(took_ms, 3) for number, took_ms in fastest_ms.items()}


if __name__ == "__main__":
    main()
