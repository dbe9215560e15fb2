"""Answers in the shape of OpenAI's (plain) completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from osd.records.query import TokenDelta, TokenLogprob
from serving.answering.generation import Choice
from serving.answering.tokens import MIN_LOGPROB, TokenFields
from serving.codec import Codec


class CompletionView:
    """Builds the choices of one completion request.

    Args:
        codec: the target's tokenizer.
        prompts: the token ids of each prompt.
        choices_per_prompt: number of answers per prompt; choices are numbered prompt by prompt.
        logprobs: whether log-probabilities are requested.
        tokens: which further fields are requested.
        echoed: the text of each prompt, which its answers then begin with; empty: they do not.
    """

    object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def __init__(
        self,
        codec: Codec,
        prompts: Sequence[Sequence[int]],
        *,
        choices_per_prompt: int,
        logprobs: bool,
        tokens: TokenFields,
        echoed: Sequence[str] = (),
    ) -> None:
        self._codec, self._tokens = codec, tokens
        self._prompts = [
            (ids, text) for ids, text in zip(prompts, echoed, strict=False) for _ in range(choices_per_prompt)
        ]
        self._echoed: set[int] = set()
        self._logprobs = logprobs
        if logprobs:
            before = [()] * len(prompts) if echoed else prompts
            self._offsets = [codec.offsets(prompt_ids) for prompt_ids in before for _ in range(choices_per_prompt)]

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A finished choice."""
        shaped = self._shape(index, choice.text, choice.logprobs, choice.finish_reason, choice.prompt_logprobs)
        return shaped | {"stop_reason": choice.stopped_by} | self._tokens.of_choice(index, choice)

    def of_answer(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Nothing: all that is said of a prompt is said in its choices."""
        return {}

    def of_first_chunk(self) -> dict[str, Any]:
        """Nothing: what is said of a prompt is in the first piece of each of its choices."""
        return {}

    def opening(self, index: int) -> None:
        """None: completions have no opening chunk."""

    def pieces(self, index: int, delta: TokenDelta) -> list[dict[str, Any]]:
        """One piece of a stream, once there is something to send."""
        tokens = self._tokens.of_delta(index, delta)
        if not (delta.text or delta.finish_reason or tokens or (self._logprobs and delta.logprobs)):
            return []
        shaped = self._shape(index, delta.text, delta.logprobs, delta.finish_reason, delta.prompt_logprobs)
        return [shaped | tokens | ({"stop_reason": delta.stopped_by} if delta.finish_reason else {})]

    def _shape(
        self,
        index: int,
        text: str,
        logprobs: Sequence[TokenLogprob],
        finish_reason: str | None,
        prompt_logprobs: Sequence[TokenLogprob],
    ) -> dict[str, Any]:
        shape: Callable[[int, Sequence[TokenLogprob]], dict[str, Any]] = self._shape_logprobs
        if self._prompts and index not in self._echoed:
            self._echoed.add(index)
            prompt_ids, prompt = self._prompts[index]
            text, shape = prompt + text, partial(self._with_prompt, prompt_ids, prompt_logprobs)
        shaped = shape(index, logprobs) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": shaped, "finish_reason": finish_reason}

    def _with_prompt(
        self,
        prompt_ids: Sequence[int],
        of_prompt: Sequence[TokenLogprob],
        index: int,
        logprobs: Sequence[TokenLogprob],
    ) -> dict[str, Any]:
        """Log-probabilities of prompt and answer; the prompt's first token has none, since nothing precedes it."""
        first = {
            "tokens": [self._token(prompt_ids[0])],
            "token_logprobs": [None],
            "top_logprobs": [None],
            "text_offset": [self._offsets[index].next(self._codec.token_bytes(prompt_ids[0]))],
        }
        rest = self._shape_logprobs(index, [*of_prompt, *logprobs])
        return {name: first[name] + rest[name] for name in first}

    def _shape_logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Log-probabilities; offsets count characters from the beginning of the choice's text."""
        return {
            "tokens": [self._token(one.token_id) for one in logprobs],
            "token_logprobs": [max(one.logprob, MIN_LOGPROB) for one in logprobs],
            "top_logprobs": [self._top(one) for one in logprobs],
            "text_offset": [self._offsets[index].next(self._codec.token_bytes(one.token_id)) for one in logprobs],
        }

    def _top(self, one: TokenLogprob) -> dict[str, float]:
        """Token text to log-probability, best first. Of equal texts the chosen or more likely one counts."""
        chosen = self._token(one.token_id)
        ranked: dict[str, float] = {}
        for token_id, logprob in (*one.top, (one.token_id, one.logprob)):
            key = self._token(token_id)
            if token_id != one.token_id and (key == chosen or key in ranked):
                key = f"token_id:{token_id}"
            ranked.setdefault(key, max(logprob, MIN_LOGPROB))
        return ranked

    def _token(self, token_id: int) -> str:
        r"""A token's text; bytes that form no whole character as `bytes:\xf0\x9f`, as OpenAI does in completions."""
        text, data = self._codec.token_text(token_id), self._codec.token_bytes(token_id)
        return self._tokens.spelt(token_id, f"bytes:{text}" if data and data != text.encode() else text)
