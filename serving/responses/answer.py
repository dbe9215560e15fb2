"""Answers in the shape of OpenAI's Responses API, whole and as events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from osd.records.query import TokenDelta, TokenLogprob
from serving.answering.generation import Choice
from serving.answering.sse import Framing, named_frame
from serving.codec import Codec
from serving.parsing.blocks import Block, Blocks, Change
from serving.parsing.pieces import AnswerParser
from serving.responses.head import output_text, response_head
from serving.responses.logprobs import TextLogprobs, Told
from serving.responses.request import ResponsesRequest
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
        model: the name of the model that answers.
        body: the request.
        codec: counts the reasoning's tokens.
        parser: splits the answer's text.
        prompt_tokens: number of prompt tokens.
        shows_special: whether the answer's text has special tokens, as they are spelt.
        keep: called with the finished response.
    """

    answer_id: str
    model: str
    body: ResponsesRequest
    codec: Codec
    parser: AnswerParser
    prompt_tokens: int
    shows_special: bool = False
    keep: Callable[[Payload], None] = lambda response: None
    created_s: int = field(default_factory=lambda: int(time.time()))
    framing: Framing = field(init=False)
    _blocks: Blocks = field(default_factory=Blocks)
    _choice: Choice = field(default_factory=Choice)
    _call_ids: dict[int, str] = field(default_factory=dict)
    _num_events: int = 0
    _texts: TextLogprobs = field(init=False)
    _told: dict[int, list[Payload]] = field(default_factory=dict)
    """Log-probabilities of each block of text, where they were asked for."""
    _status: str = "in_progress"
    _final: Payload | None = None

    def __post_init__(self) -> None:
        self.framing = Framing(frame=named_frame, error=self._error, end=b"")
        self._texts = TextLogprobs(self.codec, self.parser, shows_special=self.shows_special)

    @property
    def response(self) -> Payload:
        """The response as it is now: with the items that are complete."""
        return self._final or self._response(self._status)

    def whole(self, choices: Sequence[Choice]) -> Payload:
        """The response."""
        (self._choice,) = choices
        for told in [*self._read(self._choice.text, self._choice.logprobs), *self._end()]:
            self._take(told)
        self._blocks.end()
        return self._finished()

    def queue(self) -> Iterator[Payload]:
        """The response that waits for its first token, in the background."""
        self._status = "queued"
        for name in ("created", "queued"):
            yield self._event(f"response.{name}", response=self.response)

    def begin(self) -> Iterator[Payload]:
        """The response, still without output."""
        names = ("in_progress",) if self._status == "queued" else ("created", "in_progress")
        self._status = "in_progress"
        for name in names:
            yield self._event(f"response.{name}", response=self.response)

    def read(self, index: int, delta: TokenDelta) -> Iterator[Payload]:
        """Events for items that begin, grow and end."""
        self._choice.add(delta)
        for told in self._read(delta.text, delta.logprobs):
            for change in self._take(told):
                yield from self._events(change, told[1])

    def end(self) -> Iterator[Payload]:
        """Events for the last items, and the whole response."""
        for told in self._end():
            for change in self._take(told):
                yield from self._events(change, told[1])
        for change in self._blocks.end():
            yield from self._events(change)
        response = self._finished()
        yield self._event(f"response.{response['status']}", response=response)

    def fail(self, error: ApiError) -> Iterator[Payload]:
        """The event for an error in the background, which only the response can tell of."""
        code = "rate_limit_exceeded" if error.status == HTTPStatus.TOO_MANY_REQUESTS else "server_error"
        self._stop("failed", error={"code": code, "message": error.body()["error"]["message"]})
        yield self._event("response.failed", response=self.response)

    def cancel(self) -> None:
        """End the response where it is."""
        self._stop("cancelled")

    def _stop(self, status: str, **fields: Any) -> None:
        """End the open item, which stays incomplete."""
        for told in self._end():
            self._take(told)
        was_open = bool(self._blocks.end())
        response = self._response(status) | fields
        if was_open:
            response["output"][-1]["status"] = "incomplete"
        self._final = response

    def _read(self, text: str, logprobs: Sequence[TokenLogprob]) -> list[Told]:
        if self.body.wants_logprobs:
            return self._texts.read(text, logprobs)
        return [(piece, []) for piece in self.parser.read(text)]

    def _end(self) -> list[Told]:
        return self._texts.end() if self.body.wants_logprobs else [(piece, []) for piece in self.parser.end()]

    def _take(self, told: Told) -> list[Change]:
        """Add a piece to the blocks, and its log-probabilities to those of its block."""
        piece, logprobs = told
        changes = self._blocks.take([piece])
        for change in changes:
            if change.kind == "grow":
                self._told.setdefault(change.block.index, []).extend(logprobs)
        return changes

    def _events(self, change: Change, logprobs: Sequence[Payload] = ()) -> Iterator[Payload]:
        block = change.block
        place = {"item_id": self._item_id(block), "output_index": block.index}
        within = {**place, "content_index": 0}
        item = {"output_index": block.index, "item": self._item(block, done=change.kind == "end")}
        match change.kind, block.kind:
            case "begin", "content":
                yield self._event("response.output_item.added", **item)
                yield self._event("response.content_part.added", **within, part=output_text(""))
            case "begin", _:
                yield self._event("response.output_item.added", **item)
            case "grow", "content":
                yield self._event("response.output_text.delta", **within, delta=change.text, logprobs=list(logprobs))
            case "grow", "reasoning":
                yield self._event("response.reasoning_text.delta", **within, delta=change.text)
            case "grow", "call":
                yield self._event("response.function_call_arguments.delta", **place, delta=change.text)
            case "end", "content":
                told = self._told.get(block.index, [])
                yield self._event("response.output_text.done", **within, text=block.text, logprobs=told)
                yield self._event("response.content_part.done", **within, part=output_text(block.text, told))
                yield self._event("response.output_item.done", **item)
            case "end", "reasoning":
                yield self._event("response.reasoning_text.done", **within, text=block.text)
                yield self._event("response.output_item.done", **item)
            case "end", "call":
                done = {**place, "name": block.name, "arguments": block.text}
                yield self._event("response.function_call_arguments.done", **done)
                yield self._event("response.output_item.done", **item)

    def _item(self, block: Block, *, done: bool) -> Payload:
        head = {"id": self._item_id(block), "status": "completed" if done else "in_progress"}
        match block.kind:
            case "content":
                content = [output_text(block.text, self._told.get(block.index, ()))] if done else []
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
        if is_cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
            if response["output"]:
                response["output"][-1]["status"] = "incomplete"
        else:
            response["completed_at"] = int(time.time())
        response |= {"usage": self._usage(), "osd": osd_field([self._choice.stats])}
        self._final = response
        self.keep(response)
        return response

    def _response(self, status: str) -> Payload:
        head = response_head(
            self.body, answer_id=self.answer_id, model=self.model, created_s=self.created_s, status=status
        )
        return head | {"output": [self._item(block, done=True) for block in self._blocks.done]}

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

    def _event(self, kind: str, **fields: Any) -> Payload:
        number = self._num_events
        self._num_events += 1
        return {"type": kind, "sequence_number": number, **fields}

    def _error(self, error: ApiError) -> Payload:
        """An error event in OpenAI's shape, with `error`, from which its clients raise an exception."""
        shape = error.body()["error"]
        return self._event("error", code=shape["code"], message=shape["message"], param=shape["param"], error=shape)
