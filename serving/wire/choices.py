"""Answers that are a list of choices: chat and plain completions, which differ in their view of a choice."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from osd.records.query import QueryStats, TokenDelta
from serving.answering.generation import Choice
from serving.answering.sse import Framing
from serving.wire.request_base import StreamOptions
from serving.wire.stats import counts, told, usage

Payload = dict[str, Any]


class View(Protocol):
    """Builds the JSON of choices in one API's shape. One instance serves one request, so it may hold state."""

    object: str
    chunk_object: str
    id_prefix: str

    def choice(self, index: int, choice: Choice) -> Payload:
        """The JSON of a finished choice."""
        ...

    def of_answer(self, choices: Sequence[Choice]) -> Payload:
        """Further fields of the whole answer."""
        ...

    def of_first_chunk(self) -> Payload:
        """Further fields of a stream's first chunk."""
        ...

    def opening(self, index: int) -> Payload | None:
        """The JSON with which a stream opens a choice; None for nothing."""
        ...

    def pieces(self, index: int, delta: TokenDelta) -> Sequence[Payload]:
        """The JSON that a stream sends for a delta; a finish reason is always sent, in the last piece."""
        ...


@dataclass(kw_only=True)
class ChoicesAnswer:
    """One answer in progress (see `serving.answering.answer.Answer`)."""

    answer_id: str
    model: str
    view: View
    prompt_tokens: int
    num_choices: int
    options: StreamOptions
    created_s: int = field(default_factory=lambda: int(time.time()))
    framing: Framing = field(default_factory=Framing)
    _opened: set[int] = field(default_factory=set)
    _stats: list[QueryStats] = field(default_factory=list)
    """Statistics of the finished choices."""
    _output_tokens: int = 0

    def whole(self, choices: Sequence[Choice]) -> Payload:
        """Every choice, and the totals."""
        shaped = [self.view.choice(index, choice) for index, choice in enumerate(choices)]
        totals = self._totals([one.stats for one in choices])
        return {**self._head(self.view.object), "choices": shaped, **totals, **self.view.of_answer(choices)}

    def begin(self) -> Iterable[Payload]:
        """Nothing: each choice is opened by its first delta."""
        return ()

    def read(self, index: int, delta: TokenDelta) -> Iterator[Payload]:
        """Each piece as a chunk. The last chunk carries `osd`, unless one with the token counts follows."""
        head = self._head(self.view.chunk_object)
        if index not in self._opened:
            first = {} if self._opened else self.view.of_first_chunk()
            self._opened.add(index)
            if (opening := self.view.opening(index)) is not None:
                yield {**head, "choices": [opening], **self._usage_so_far(), **first}
        self._output_tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._stats.append(delta.stats or QueryStats())
        for piece in self.view.pieces(index, delta):
            is_last = piece["finish_reason"] is not None and len(self._stats) == self.num_choices
            osd = told(self._stats) if is_last and not self.options.include_usage else {}
            yield {**head, "choices": [piece], **self._usage_so_far(), **osd}

    def end(self) -> Iterator[Payload]:
        """The token counts, if they were asked for."""
        if self.options.include_usage:
            yield {**self._head(self.view.chunk_object), "choices": [], **self._totals(self._stats)}

    def _usage_so_far(self) -> Payload:
        if not self.options.include_usage:
            return {}
        if not self.options.continuous_usage_stats:
            return {"usage": None}
        return {"usage": counts(self.prompt_tokens, self._output_tokens)}

    def _head(self, kind: str) -> Payload:
        return {"id": self.answer_id, "object": kind, "created": self.created_s, "model": self.model}

    def _totals(self, stats: Sequence[QueryStats]) -> Payload:
        return {"usage": usage(self.prompt_tokens, stats), **told(stats)}
