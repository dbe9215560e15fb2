"""Which tokens of a GGUF vocabulary are special, and which end an answer, by llama.cpp's rules.

Files rarely mark them completely, so llama.cpp (`src/llama-vocab.cpp`) also goes by the tokens' texts, as this does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CONTROL, USER_DEFINED, UNKNOWN = 3, 4, 2
"""Values of `tokenizer.ggml.token_type`."""

_TURN_ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<end_of_utterance>",
)
_OTHER_ENDS = (
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "<|eom_id|>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)
_ENDS_OF_FILLS: Mapping[str, tuple[str, ...]] = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Tokens that end a fill-in-the-middle completion: by their metadata key `tokenizer.ggml.<key>_token_id`, or text."""
_FILLS = (
    ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>", "\u2581<PRE>")
    + ("<|code_prefix|>", "<|prefix|>")
    + ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>", "\u2581<SUF>")
    + ("<|code_suffix|>", "<|suffix|>")
    + ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>", "\u2581<MID>")
    + ("<|code_middle|>", "<|middle|>")
)


def token_id(metadata: Mapping[str, Any], name: str, vocab_tokens: int) -> int | None:
    """The id under `tokenizer.ggml.<name>_token_id`; None if it is absent or outside the vocabulary."""
    number = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return int(number) if number is not None and 0 <= number < vocab_tokens else None


def end_ids(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    """Ids of the tokens that end an answer, by the file's metadata or by their text."""
    ids = {text: number for number, text in enumerate(tokens)}
    ends = {ids[text] for text in (*_TURN_ENDS, *_OTHER_ENDS) if text in ids}
    ends |= {number for name in ("eos", "eot", "eom") if (number := token_id(metadata, name, len(tokens))) is not None}
    for name, texts in _ENDS_OF_FILLS.items():
        named = token_id(metadata, name, len(tokens))
        found = [named] if named is not None else [ids[text] for text in texts if text in ids][:1]
        ends.update(found)
    here = {tokens[number] for number in ends}
    if {"<|call|>", "<|return|>"} <= here or ({"<|flush|>"} <= here and here & {"<|call|>", "<|calls|>"}):
        ends -= {ids["<|end|>"]} if "<|end|>" in ids else set()  # there it ends a message, not the answer
    if here & {"<|tool_response>", "<|plamo:eos|>"} and "</s>" in ids:
        ends.discard(ids["</s>"])  # there it is an HTML tag
    return sorted(ends)


def token_kinds(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    """Each token's type; tokens with the text of a known control token count as control tokens."""
    kinds = list(metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens))
    ids = {text: number for number, text in enumerate(tokens)}
    named = (*_TURN_ENDS, *_OTHER_ENDS, *_FILLS, *(text for texts in _ENDS_OF_FILLS.values() for text in texts))
    for text in named:
        if text in ids:
            kinds[ids[text]] = CONTROL
    return kinds
