"""`use_beam_search` over HTTP: the answers are those of transformers' beam search over the same random model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

from osd.config.settings import load_config
from osd.records.query import TokenLogprob
from osd.text.codec import TextCodec
from serving.answering.beams import Beams
from serving.app import create_app
from tests.kit.engine_kit import tiny_llama
from tests.kit.http_server import serve
from tests.kit.local_client import CONTEXT_TOKENS, LocalClient, local_client

_PROMPT = "It was a cold day"
_MAX_TOKENS = 10


class _Service:
    def __init__(self, url: str, engine: LocalClient, codec: TextCodec) -> None:
        self.url, self.engine, self.codec = url, engine, codec
        self.model = tiny_llama(3, vocab_tokens=codec.vocab_tokens)
        self.model.config.max_position_embeddings = CONTEXT_TOKENS

    def post(self, route: str = "completions", **fields: Any) -> httpx.Response:
        of_route = {"prompt": _PROMPT} if route == "completions" else {"messages": [{"role": "user", "content": "hi"}]}
        ask = {"model": "tiny", "max_tokens": _MAX_TOKENS, "use_beam_search": True, **of_route, **fields}
        return httpx.post(f"{self.url}/v1/{route}", json=ask, timeout=60)

    def search(self, route: str = "completions", **fields: Any) -> dict[str, Any]:
        answer = self.post(route, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def expected(self, prompt_ids: list[int], n: int, length_penalty: float, end_ids: list[int]) -> list[Any]:
        """(tokens, score) of transformers' beams, best first."""
        found: Any = self.model.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            num_beams=n,
            num_return_sequences=n,
            max_new_tokens=_MAX_TOKENS,
            length_penalty=length_penalty,
            early_stopping="never",
            do_sample=False,
            eos_token_id=end_ids or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        beams = []
        for sequence, score in zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True):
            ids = sequence[len(prompt_ids) :]
            ends = [at for at, token in enumerate(ids) if token in end_ids]
            beams.append((ids[: ends[0] + 1] if ends else ids, score))
        return beams


@pytest.fixture(scope="module")
def service() -> Iterator[_Service]:
    with (
        local_client() as (engine, codec),
        serve(create_app(load_config(), engine, codec, admin_token_sha256="")) as url,
    ):
        yield _Service(url, engine, codec)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 3.0])
def test_the_beams_are_those_of_transformers(service: _Service, n: int, length_penalty: float) -> None:
    prompt_ids = list(service.codec.encode_text(_PROMPT))
    free = service.search(n=n, ignore_eos=True, return_token_ids=True)["choices"][0]["token_ids"]
    for end in (free[2], free[6]):  # ends that the best beam comes by
        end_ids = sorted({end, *service.codec.end_ids})
        answer = service.search(
            n=n, length_penalty=length_penalty, stop_token_ids=[end], logprobs=0, return_token_ids=True
        )
        expected = service.expected(prompt_ids, n, length_penalty, end_ids)
        assert [choice["token_ids"] for choice in answer["choices"]] == [ids for ids, _ in expected]
        for choice, (ids, score) in zip(answer["choices"], expected, strict=True):
            total = sum(choice["logprobs"]["token_logprobs"])
            assert total / len(ids) ** length_penalty == pytest.approx(score, abs=1e-3)
            has_ended = ids[-1] in end_ids
            assert choice["finish_reason"] == ("stop" if has_ended else "length")
            assert choice["stop_reason"] == (end if ids[-1] == end else None)
            assert choice["text"] == service.codec.decode(ids[:-1] if has_ended else ids)


def test_a_chat_and_several_prompts_are_searched_for(service: _Service) -> None:
    chat = service.search("chat/completions", n=3, logprobs=True, top_logprobs=2)
    assert len(chat["choices"]) == 3 and chat["usage"]["completion_tokens"] <= 3 * _MAX_TOKENS
    for choice in chat["choices"]:
        content = choice["logprobs"]["content"]
        assert all(len(one["top_logprobs"]) == 2 for one in content)
        assert "".join(bytes(one["bytes"]).decode(errors="ignore") for one in content).startswith(
            choice["message"]["content"][:3]
        )
    both = service.search(prompt=[_PROMPT, "a b c"], n=2)["choices"]
    alone = [choice for prompt in (_PROMPT, "a b c") for choice in service.search(prompt=prompt, n=2)["choices"]]
    assert [(one["index"], one["text"]) for one in both] == [(at, one["text"]) for at, one in enumerate(alone)]


def test_a_stream_holds_each_answer_in_one_piece(service: _Service) -> None:
    whole = service.search(n=2)
    streamed = service.post(n=2, stream=True, stream_options={"include_usage": True})
    events = [json.loads(line[6:]) for line in streamed.text.split("\n\n")[:-2]]
    pieces = [event["choices"][0] for event in events if event["choices"]]
    assert [piece["text"] for piece in pieces] == [choice["text"] for choice in whole["choices"]]
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_a_step_reads_a_few_tokens_a_beam(service: _Service) -> None:
    """The prompt is in the prefix cache. Nothing of a search is learnt from, and nothing is proposed."""
    prompt = list(range(60, 100))
    before = len(service.engine.requests)
    answer = service.search(prompt=prompt, n=3, ignore_eos=True)
    queries = service.engine.requests[before:]
    assert len(queries) == 1 + 3 * (_MAX_TOKENS - 1)
    assert not any(query.store for query in queries) and {query.speculation_length for query in queries} == {0}
    read = service.engine.prefilled(len(queries))
    assert read[0] == len(prompt) and max(read[1:]) < _MAX_TOKENS
    assert answer["osd"]["rounds"] == 0 and answer["usage"]["prompt_tokens"] == len(prompt)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_p": 0.9}, "top_p"),
        ({"temperature": 0.7}, "temperature"),
        ({"stop": "x"}, "stop"),
        ({"n": 20}, "n"),
        ({"max_tokens": 0, "echo": True}, "max_tokens"),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"osd": {"speculation_length": 2}}, "osd.speculation_length"),
        ({"use_beam_search": False, "length_penalty": 2.0}, "length_penalty"),
    ],
)
def test_what_a_search_cannot_do_is_refused(service: _Service, fields: dict[str, Any], param: str) -> None:
    answer = service.post(**fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param and "use_beam_search" in answer.json()["error"]["message"]


def test_calls_that_are_enforced_are_not_searched_for(service: _Service) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    answer = service.post("chat/completions", tools=tools, tool_choice="required")
    assert answer.json()["error"]["param"] == "tools"


def test_a_search_ends_when_no_beam_can_win() -> None:
    beams = Beams(width=1, max_tokens=1000, length_penalty=0.0, end_ids={9})
    is_over = []
    for top in (_top((1, -0.1), (9, -5.0)), _top((9, -0.2), (1, -3.0))):
        beams.grow([top])
        is_over.append(beams.is_over)
    assert is_over == [False, True] and [beam.token_ids for beam in beams.finished] == [(1, 9)]


def _top(*pairs: tuple[int, float]) -> TokenLogprob:
    return TokenLogprob(pairs[0][0], pairs[0][1], pairs)
