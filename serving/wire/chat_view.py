"""Answers in the shape of OpenAI's chat completions."""

from __future__ import annotations

import secrets
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from osd.records.query import TokenDelta, TokenLogprob
from serving.answering.generation import Choice
from serving.answering.tokens import TokenFields, token_entry
from serving.codec import Codec
from serving.parsing.pieces import (
    AnswerParser,
    CallArguments,
    CallStart,
    Content,
    Piece,
    PlainText,
    Reasoning,
    parts_of,
)

_LETTERS = string.ascii_letters + string.digits


def new_call_id() -> str:
    """Nine letters and digits: Mistral's templates take no other ids back."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


def _reasoning(text: str) -> dict[str, Any]:
    """Under both names that clients of vLLM know."""
    return {"reasoning": text, "reasoning_content": text}


def _finish(reason: str | None, num_calls: int) -> str | None:
    return "tool_calls" if reason == "stop" and num_calls else reason


class ChatView:
    """Builds the choices of one chat request."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def __init__(
        self,
        codec: Codec,
        *,
        logprobs: bool,
        new_parser: Callable[[], AnswerParser] = PlainText,
        include_reasoning: bool = True,
        echoed: str = "",
        tokens: TokenFields | None = None,
        prompt_text: str | None = None,
    ) -> None:
        self._codec = codec
        self._logprobs = logprobs
        self._tokens, self._prompt_text = tokens, prompt_text
        self._new_parser, self._include_reasoning, self._echoed = new_parser, include_reasoning, echoed
        self._parsers: dict[int, AnswerParser] = {}
        self._num_calls: Counter[int] = Counter()

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A finished choice."""
        parts = parts_of(self._new_parser(), choice.text)
        content = self._echoed + parts.content
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if parts.reasoning and self._include_reasoning:
            message |= _reasoning(parts.reasoning)
        if parts.calls:
            message["content"] = content or None
            message["tool_calls"] = [
                {"id": new_call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in parts.calls
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": self._shape_logprobs(choice.logprobs),
            "finish_reason": _finish(choice.finish_reason, len(parts.calls)),
            "stop_reason": choice.stopped_by,
            **(self._tokens.ids(choice.token_ids) if self._tokens else {}),
        }

    def of_answer(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Fields of the answer as a whole: what was asked of the prompt, which all choices share."""
        return self._text_of_prompt() | (self._tokens.of_prompt(0, choices[0]) if self._tokens else {})

    def of_first_chunk(self) -> dict[str, Any]:
        """The same, but for the prompt's log-probabilities, which streams do not have."""
        return self._text_of_prompt() | (self._tokens.ids_of_prompt(0) if self._tokens else {})

    def _text_of_prompt(self) -> dict[str, Any]:
        return {} if self._prompt_text is None else {"prompt_text": self._prompt_text}

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a choice: the role, and what is echoed."""
        return self._piece(index, {"role": "assistant", "content": self._echoed}, (), None)

    def pieces(self, index: int, delta: TokenDelta) -> list[dict[str, Any]]:
        """Further chunks, as far as there is something to send; log-probabilities go with the first."""
        parser = self._parsers.setdefault(index, self._new_parser())
        parsed = parser.read(delta.text)
        if delta.finish_reason:
            parsed += parser.end()
        self._num_calls[index] += sum(isinstance(one, CallStart) for one in parsed)
        deltas = [self._delta(one) for one in parsed if self._include_reasoning or not isinstance(one, Reasoning)]
        logprobs = delta.logprobs if self._logprobs else ()
        tokens = self._tokens.ids(delta.token_ids) if self._tokens else {}
        if not deltas and (logprobs or tokens):
            deltas.append({"content": ""})
        if delta.finish_reason and (not deltas or "tool_calls" in deltas[-1]):
            deltas.append({})
        reasons = [None] * (len(deltas) - 1) + [_finish(delta.finish_reason, self._num_calls[index])]
        return [
            self._piece(index, one, () if at else logprobs, reason)
            | ({} if at else tokens)
            | ({"stop_reason": delta.stopped_by} if reason else {})
            for at, (one, reason) in enumerate(zip(deltas, reasons, strict=False))
        ]

    def _delta(self, piece: Piece) -> dict[str, Any]:
        match piece:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return _reasoning(text)
            case CallStart(index, name):
                function = {"name": name, "arguments": ""}
                return {"tool_calls": [{"index": index, "id": new_call_id(), "type": "function", "function": function}]}
            case CallArguments(index, json):
                return {"tool_calls": [{"index": index, "function": {"arguments": json}}]}

    def _piece(
        self, index: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprob], finish_reason: str | None
    ) -> dict[str, Any]:
        shaped = self._shape_logprobs(logprobs) if logprobs else None
        return {"index": index, "delta": delta, "logprobs": shaped, "finish_reason": finish_reason}

    def _shape_logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = [
            {**self._token(one.token_id, one.logprob), "top_logprobs": [self._token(*pair) for pair in one.top]}
            for one in logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        spelt = self._tokens.spelt(token_id, self._codec.token_text(token_id)) if self._tokens else None
        return token_entry(self._codec, token_id, logprob, spelt)
