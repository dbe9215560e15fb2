"""Answers in the shape of Anthropic's Messages API, whole and as events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from osd.records.query import FinishReason, QueryStats, TokenDelta
from serving.answering.generation import Choice
from serving.answering.sse import Framing, named_frame
from serving.parsing.blocks import Block, Blocks, Change
from serving.parsing.pieces import AnswerParser
from serving.wire.errors import ApiError
from serving.wire.stats import osd_field, usage

Payload = dict[str, Any]
FRAMING = Framing(
    frame=named_frame,
    ping=named_frame({"type": "ping"}),
    error=ApiError.anthropic_body,
    end=b"",
)


@dataclass(kw_only=True)
class MessagesAnswer:
    """One answer in progress (see `serving.answering.answer.Answer`)."""

    answer_id: str
    model: str
    parser: AnswerParser
    prompt_tokens: int
    framing: Framing = FRAMING
    _blocks: Blocks = field(default_factory=Blocks)
    _choice: Choice = field(default_factory=Choice)

    def whole(self, choices: Sequence[Choice]) -> Payload:
        """The message."""
        (self._choice,) = choices
        self._blocks.take([*self.parser.read(self._choice.text), *self.parser.end()])
        self._blocks.end()
        content = [self._shape(block, final=True) for block in self._blocks.done]
        return {**self._head(), "content": content, **self._stop(), "usage": self._usage(), "osd": self._osd()}

    def begin(self) -> Iterator[Payload]:
        """The message, still without content."""
        nothing_yet = {"stop_reason": None, "stop_sequence": None}
        usage_so_far = {"input_tokens": self.prompt_tokens, "output_tokens": 0}
        message = {**self._head(), "content": [], **nothing_yet, "usage": usage_so_far}
        yield {"type": "message_start", "message": message}

    def read(self, index: int, delta: TokenDelta) -> Iterator[Payload]:
        """Events for blocks that begin, grow and end."""
        self._choice.add(delta)
        for change in self._blocks.take(self.parser.read(delta.text)):
            yield self._event(change)

    def end(self) -> Iterator[Payload]:
        """Events for the last blocks, the stop reason, and the token counts."""
        for change in [*self._blocks.take(self.parser.end()), *self._blocks.end()]:
            yield self._event(change)
        yield {"type": "message_delta", "delta": self._stop(), "usage": self._usage(), "osd": self._osd()}
        yield {"type": "message_stop"}

    def _event(self, change: Change) -> Payload:
        block = change.block
        match change.kind:
            case "begin":
                shape = self._shape(block, final=False)
                return {"type": "content_block_start", "index": block.index, "content_block": shape}
            case "grow":
                delta = {
                    "content": {"type": "text_delta", "text": change.text},
                    "reasoning": {"type": "thinking_delta", "thinking": change.text},
                    "call": {"type": "input_json_delta", "partial_json": change.text},
                }[block.kind]
                return {"type": "content_block_delta", "index": block.index, "delta": delta}
        return {"type": "content_block_stop", "index": block.index}

    def _shape(self, block: Block, *, final: bool) -> Payload:
        text = block.text if final else ""
        match block.kind:
            case "content":
                return {"type": "text", "text": text}
            case "reasoning":
                return {"type": "thinking", "thinking": text, "signature": ""}
        tool_use_id = f"toolu_{self.answer_id.removeprefix('msg_')}_{block.index}"
        return {"type": "tool_use", "id": tool_use_id, "name": block.name, "input": _json_object(text)}

    def _stop(self) -> Payload:
        by = self._choice.stopped_by
        matched = by if isinstance(by, str) else None
        has_calls = any(block.kind == "call" for block in self._blocks.done)
        return {"stop_reason": _reason(self._choice.finish_reason, matched, has_calls), "stop_sequence": matched}

    def _head(self) -> Payload:
        return {"id": self.answer_id, "type": "message", "role": "assistant", "model": self.model}

    def _usage(self) -> Payload:
        counted = usage(self.prompt_tokens, self._stats())
        cached = counted["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": self.prompt_tokens - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": counted["completion_tokens"],
        }

    def _osd(self) -> Payload:
        return osd_field(self._stats())

    def _stats(self) -> Sequence[QueryStats]:
        return [self._choice.stats]


def _reason(reason: FinishReason | None, matched_stop: str | None, has_calls: bool) -> str:
    if reason == "length":
        return "max_tokens"
    if matched_stop is not None:
        return "stop_sequence"
    return "tool_use" if has_calls else "end_turn"


def _json_object(text: str) -> Any:
    """A call's arguments; if they are not a JSON object (cut off, for instance), they are text under `arguments`."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"arguments": text}
