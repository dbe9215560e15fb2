"""Answers in the shape of OpenAI's Responses API, whole and as events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from osd.records.query import TokenDelta, TokenLogprob
from serving.answering.generation import Choice
from serving.answering.sse import Framing, named_frame
from serving.answering.tokens import token_entry
from serving.codec import Codec
from serving.parsing.blocks import Block, Blocks, Change
from serving.parsing.pieces import AnswerParser
from serving.responses.request import ResponsesRequest, TextOptions
from serving.wire.chat_view import new_call_id
from serving.wire.errors import ApiError
from serving.wire.stats import osd_field, usage

Payload = dict[str, Any]
_PREFIXES = {"content": "msg", "reasoning": "rs", "call": "fc"}


@dataclass(kw_only=True)
class ResponsesAnswer:
    """One answer in progress (see `serving.answering.answer.Answer`).

    Args:
        answer_id: id of the response.
        body: the request.
        codec: counts the reasoning's tokens.
        parser: splits the answer's text.
        prompt_tokens: number of prompt tokens.
        keep: called with the finished response.
    """

    answer_id: str
    body: ResponsesRequest
    codec: Codec
    parser: AnswerParser
    prompt_tokens: int
    keep: Callable[[Payload], None]
    created_s: int = field(default_factory=lambda: int(time.time()))
    framing: Framing = field(init=False)
    _blocks: Blocks = field(default_factory=Blocks)
    _choice: Choice = field(default_factory=Choice)
    _call_ids: dict[int, str] = field(default_factory=dict)
    _num_events: int = 0
    _told: list[Payload] = field(default_factory=list)
    """Log-probabilities of the text, where they were asked for; all of an answer is then text."""
    _untold: list[Payload] = field(default_factory=list)
    """Those of tokens whose text is still to come."""

    def __post_init__(self) -> None:
        self.framing = Framing(frame=named_frame, error=self._error, end=b"")

    def whole(self, choices: Sequence[Choice]) -> Payload:
        """The response."""
        (self._choice,) = choices
        self._told = self._logprobs(self._choice.logprobs)
        self._blocks.take([*self.parser.read(self._choice.text), *self.parser.end()])
        self._blocks.end()
        return self._finished()

    def begin(self) -> Iterator[Payload]:
        """The response, still without output."""
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response("in_progress"))

    def read(self, index: int, delta: TokenDelta) -> Iterator[Payload]:
        """Events for items that begin, grow and end."""
        self._choice.add(delta)
        self._untold += self._logprobs(delta.logprobs)
        for change in self._blocks.take(self.parser.read(delta.text)):
            yield from self._events(change)

    def end(self) -> Iterator[Payload]:
        """Events for the last items, and the whole response."""
        for change in [*self._blocks.take(self.parser.end()), *self._blocks.end()]:
            yield from self._events(change)
        response = self._finished()
        yield self._event(f"response.{response['status']}", response=response)

    def _events(self, change: Change) -> Iterator[Payload]:
        block = change.block
        place = {"item_id": self._item_id(block), "output_index": block.index}
        within = {**place, "content_index": 0}
        item = {"output_index": block.index, "item": self._item(block, done=change.kind == "end")}
        match change.kind, block.kind:
            case "begin", "content":
                yield self._event("response.output_item.added", **item)
                yield self._event("response.content_part.added", **within, part=_output_text(""))
            case "begin", _:
                yield self._event("response.output_item.added", **item)
            case "grow", "content":
                new, self._untold = self._untold, []
                self._told += new
                yield self._event("response.output_text.delta", **within, delta=change.text, logprobs=new)
            case "grow", "reasoning":
                yield self._event("response.reasoning_text.delta", **within, delta=change.text)
            case "grow", "call":
                yield self._event("response.function_call_arguments.delta", **place, delta=change.text)
            case "end", "content":
                yield self._event("response.output_text.done", **within, text=block.text, logprobs=self._told)
                yield self._event("response.content_part.done", **within, part=_output_text(block.text, self._told))
                yield self._event("response.output_item.done", **item)
            case "end", "reasoning":
                yield self._event("response.reasoning_text.done", **within, text=block.text)
                yield self._event("response.output_item.done", **item)
            case "end", "call":
                done = {**place, "name": block.name, "arguments": block.text}
                yield self._event("response.function_call_arguments.done", **done)
                yield self._event("response.output_item.done", **item)

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> list[Payload]:
        """Those of the tokens that add text."""
        if not self.body.wants_logprobs:
            return []
        told = [
            token_entry(self.codec, one.token_id, one.logprob)
            | {"top_logprobs": [token_entry(self.codec, *pair) for pair in one.top]}
            for one in logprobs
        ]
        return [one for one in told if one["bytes"]]

    def _item(self, block: Block, *, done: bool) -> Payload:
        head = {"id": self._item_id(block), "status": "completed" if done else "in_progress"}
        match block.kind:
            case "content":
                content = [_output_text(block.text, self._told)] if done else []
                return {**head, "type": "message", "role": "assistant", "content": content}
            case "reasoning":
                content = [{"type": "reasoning_text", "text": block.text}] if done else []
                return {**head, "type": "reasoning", "summary": [], "content": content}
        call_id = self._call_ids.setdefault(block.index, new_call_id())
        arguments = block.text if done else ""
        return {**head, "type": "function_call", "call_id": call_id, "name": block.name, "arguments": arguments}

    def _item_id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self.answer_id.removeprefix('resp_')}_{block.index}"

    def _finished(self) -> Payload:
        is_cut = self._choice.finish_reason == "length"
        response = self._response("incomplete" if is_cut else "completed")
        response["output"] = [self._item(block, done=True) for block in self._blocks.done]
        if is_cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
            if response["output"]:
                response["output"][-1]["status"] = "incomplete"
        else:
            response["completed_at"] = int(time.time())
        response |= {"usage": self._usage(), "osd": osd_field([self._choice.stats])}
        self.keep(response)
        return response

    def _usage(self) -> Payload:
        counted = usage(self.prompt_tokens, [self._choice.stats])
        thought = "".join(block.text for block in self._blocks.done if block.kind == "reasoning")
        thought_tokens = len(self.codec.encode_text(thought, add_special_tokens=False)) if thought else 0
        cached = counted["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": counted["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": counted["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": thought_tokens},
            "total_tokens": counted["total_tokens"],
        }

    def _response(self, status: str) -> Payload:
        body = self.body
        return {
            "id": self.answer_id,
            "object": "response",
            "created_at": self.created_s,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata,
            "model": body.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "service_tier": "default",
            "store": body.store,
            "temperature": body.temperature,
            "text": (body.text or TextOptions()).as_sent(),
            "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
            "tools": [tool.as_sent() for tool in body.tools],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": body.truncation,
            "usage": None,
            "user": body.user,
        }

    def _event(self, kind: str, **fields: Any) -> Payload:
        number = self._num_events
        self._num_events += 1
        return {"type": kind, "sequence_number": number, **fields}

    def _error(self, error: ApiError) -> Payload:
        """An error event in OpenAI's shape, with `error`, from which its clients raise an exception."""
        shape = error.body()["error"]
        return self._event("error", code=shape["code"], message=shape["message"], param=shape["param"], error=shape)


def _output_text(text: str, logprobs: Sequence[Payload] = ()) -> Payload:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
