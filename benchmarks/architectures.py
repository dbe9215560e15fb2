"""Which of transformers' causal LMs osd serves: serves a tiny random model of each and writes `docs/models.md`.

Every model answers several prompts greedily, with fewer rows than prompts. This exercises chunked prefill, rows of
different lengths, partly accepted proposals and prompts with a cached prefix. The answers must equal those of
transformers' `generate()` token by token.

    python -m benchmarks.architectures              # rewrites the page
    python -m benchmarks.architectures llama opt    # prints the results of these only
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.tiny_models import CONTEXT_TOKENS, VOCAB_TOKENS, NotTinyError, tiny_model
from osd.assembly.engine import make_engine, measure
from osd.assembly.kernels import backend_for
from osd.config.drafter import SpeculationConfig
from osd.config.settings import Config
from osd.config.target import EngineConfig
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.records.drafter_id import DrafterId
from osd.records.errors import OsdError
from osd.records.proposal import DraftBatch, Proposal
from osd.records.query import Request, SamplingParams
from osd.text.codec import TextCodec

Verdict = Literal["served", "refused", "wrong", "not tried"]
_PAGE = Path("docs/models.md")
_BEGIN, _END = "<!-- table:begin -->", "<!-- table:end -->"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon with alibi": ("falcon", {"alibi": True}),
    "opt with a projection": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "phi3 with longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 56,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.2, 1.5, 2.0],
                "long_factor": [2.0, 4.0, 8.0, 16.0],
            },
        },
    ),
    "llama with dynamic rope": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "bert as a decoder": ("bert", {"is_decoder": True}),
}
"""Variants: kinds with options other than the defaults."""
_NEW_TOKENS = 12
_SHARED = tuple(range(5, 29))
"""The common prefix of two prompts."""
_PROMPTS = (
    (3, 17, 4),
    _SHARED,
    (9, 9, 50, 9, 31, 31, 8, 40, 22, 60, 13),
    (*_SHARED[:20], 61, 33),
    (62,),
    tuple(range(60, 20, -1)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """The result for one kind of model."""

    kind: str
    name: str
    """The transformers class."""
    verdict: Verdict
    how: str
    """The forward implementation that serves it, or the reason why it is not served."""


def try_kind(kind: str, **options: Any) -> Row:
    """Serve a tiny model of a kind.

    Args:
        kind: a `model_type` of transformers.
        options: of its configuration, in addition to those that make it small.
    """
    try:
        model = tiny_model(kind, **options)
    except NotTinyError as error:
        return Row(kind, _class_of(kind), "not tried", str(error))
    name = type(model).__name__
    try:
        expected = [_generate(model, prompt) for prompt in _PROMPTS]
    except Exception as error:  # these classes may raise anything
        return Row(kind, name, "not tried", f"generate() fails: {type(error).__name__}")
    try:
        target = Target(
            model,
            backend_for(model.device),
            target_id=kind,
            eos_ids=frozenset(),
            num_slots=4,
            max_context_tokens=CONTEXT_TOKENS,
            max_new_tokens=16,
            max_round_tokens=4,
        )
    except OsdError as error:
        return Row(kind, name, "refused", str(error))
    answers = _serve(target, expected)
    if answers != expected:
        return Row(kind, name, "wrong", f"{sum(a != b for a, b in zip(answers, expected, strict=True))} answers differ")
    return Row(kind, name, "served", "fused" if target.lm.is_fused else "transformers' own")


def _class_of(kind: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])


@torch.no_grad()
def _generate(model: Any, prompt: Sequence[int]) -> list[int]:
    ids = torch.tensor([list(prompt)])
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": _NEW_TOKENS, "eos_token_id": None}
    output = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
    found: list[int] = output[0, len(prompt) :].tolist()
    return found


def _serve(target: Target, expected: Sequence[Sequence[int]]) -> list[list[int]]:
    """The engine's answers to all prompts, submitted at once; there are more prompts than rows."""
    config = Config(
        engine=EngineConfig(max_slots=len(target.tokens_SL), prefill_chunk_tokens=7),
        speculation=SpeculationConfig(max_length=3, fixed_length=3),
    )
    drafter = _Foresight([[*prompt, *answer] for prompt, answer in zip(_PROMPTS, expected, strict=True)])
    engine = make_engine(config, target, _codec(), [drafter], measure(config, target, [drafter]))
    answers: list[list[int]] = [[] for _ in _PROMPTS]
    params = SamplingParams(temperature=0.0, max_tokens=_NEW_TOKENS, ignore_eos=True)
    for number, prompt in enumerate(_PROMPTS):
        engine.submit(Request(request_id=str(number), prompt_ids=prompt, params=params))
    while engine.has_work:
        for delta in engine.step():
            answers[int(delta.request_id)] += delta.token_ids
    return answers


class _Foresight:
    """A drafter that knows the answers and proposes every third token wrong, so that some proposals are rejected."""

    id = DrafterId("foresight", 1)
    needs_hidden = False

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._texts = texts

    def propose(self, batch: DraftBatch) -> Proposal:
        num_steps = max(batch.lengths)
        rows = [self._after(batch.tokens_SL[row, :num].tolist(), num_steps) for row, num in enumerate(batch.num_tokens)]
        return Proposal(torch.tensor(rows), batch.lengths, None, self.id)

    def _after(self, known: list[int], num_steps: int) -> list[int]:
        [text] = [text for text in self._texts if list(text[: len(known)]) == known] or [()]
        said = [*text[len(known) : len(known) + num_steps], *[0] * num_steps][:num_steps]
        return [
            (token + 1) % VOCAB_TOKENS if (len(known) + step) % 3 == 0 else token for step, token in enumerate(said)
        ]

    def reset_row(self, row: int) -> None:
        pass

    def swap_rows(self, row: int, other: int) -> None:
        pass

    def adopt(self, other: Drafter) -> None:
        pass


def _codec() -> TextCodec:
    """A codec whose tokens are the words "0", "1", …"""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(number): number for number in range(VOCAB_TOKENS)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    return TextCodec(tokenizer, model_id="tiny", context_tokens=CONTEXT_TOKENS)


def all_names() -> list[str]:
    """Every kind of transformers, and the variants."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS])


def try_name(name: str) -> Row:
    """Serve a kind or a variant."""
    kind, options = VARIANTS.get(name, (name, {}))
    return replace(try_kind(kind, **options), kind=name)


def table(rows: Sequence[Row]) -> str:
    """The generated part of the page."""
    served = [row for row in rows if row.verdict == "served"]
    refused, untried = ([row for row in rows if row.verdict == verdict] for verdict in ("refused", "not tried"))
    numbers = f"{len(served)} served, {len(refused)} refused, {len(untried)} not tried"
    lines = [
        f"With transformers {version('transformers')}: {numbers}.",
        "",
        "| model type | class | |",
        "| --- | --- | --- |",
        *(line_of(row) for row in (*served, *refused, *untried)),
    ]
    return "\n".join(lines)


def line_of(row: Row) -> str:
    """One line of the table; for a refusal only the reason."""
    reason = row.how.partition(" cannot be served: ")[2].rpartition(". Use ")[0]
    said = {"served": f"served, {row.how}", "refused": f"refused: {reason}"}.get(
        row.verdict, f"{row.verdict}: {row.how}"
    )
    return f"| {row.kind} | {row.name} | {said.replace('|', '/')} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or print the results for the kinds named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", help="kinds of models, or variants; the page is not written then")
    names = parser.parse_args(arguments).names
    rows = []
    for name in names or all_names():
        rows.append(try_name(name))
        print(line_of(rows[-1]), flush=True)
    if wrong := [row.kind for row in rows if row.verdict == "wrong"]:
        sys.exit(f"served wrongly: {', '.join(wrong)}")
    if not names:
        head, rest = _PAGE.read_text().split(_BEGIN)
        _PAGE.write_text(f"{head}{_BEGIN}\n\n{table(rows)}\n\n{_END}{rest.split(_END)[1]}")


if __name__ == "__main__":
    main()
