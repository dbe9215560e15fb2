"""Sampling fields over HTTP, answered by a random model in this process."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from osd.config.settings import load_config
from osd.text.codec import TextCodec
from serving.app import create_app
from tests.kit.http_server import serve
from tests.kit.local_client import LocalClient, local_client

_ASK: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "seed": 3}


class _Service:
    def __init__(self, url: str, engine: LocalClient, codec: TextCodec) -> None:
        self.url, self.engine, self.codec = url, engine, codec

    def post(self, route: str, **fields: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/v1/{route}", json={**_ASK, **fields}, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def complete(self, **fields: Any) -> dict[str, Any]:
        """The first choice of a completion."""
        return self.post("completions", **{"prompt": "It was a", **fields})["choices"][0]  # type: ignore[no-any-return]

    def chat(self, **fields: Any) -> dict[str, Any]:
        return self.post("chat/completions", messages=[{"role": "user", "content": "hi"}], **fields)

    def refused(self, **fields: Any) -> tuple[int, str]:
        answer = httpx.post(f"{self.url}/v1/completions", json={**_ASK, "prompt": "a", **fields}, timeout=60)
        return answer.status_code, answer.json()["error"]["param"]


@pytest.fixture(scope="module")
def service() -> Iterator[_Service]:
    with local_client() as (engine, codec):
        app = create_app(load_config(), engine, codec, admin_token_sha256="")
        with serve(app) as url:
            yield _Service(url, engine, codec)


def _ids(choice: dict[str, Any]) -> list[int]:
    return choice["token_ids"]  # type: ignore[no-any-return]


def test_token_ids_are_those_of_the_text(service: _Service) -> None:
    choice = service.complete(return_token_ids=True)
    assert service.codec.decode(_ids(choice)) == choice["text"]
    assert choice["prompt_token_ids"] == list(service.codec.encode_text("It was a"))
    chat = service.chat(return_token_ids=True)
    assert service.codec.decode(_ids(chat["choices"][0])) == chat["choices"][0]["message"]["content"]
    assert chat["prompt_token_ids"]


def test_token_ids_of_a_stream(service: _Service) -> None:
    body = {**_ASK, "prompt": "It was a", "return_token_ids": True, "stream": True}
    found, prompts = [], []
    with httpx.stream("POST", f"{service.url}/v1/completions", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    found += choice["token_ids"]
                    prompts += choice.get("prompt_token_ids", [])
    assert found == _ids(service.complete(return_token_ids=True))
    assert prompts == list(service.codec.encode_text("It was a"))


def test_a_streamed_chat_tells_of_its_prompt_in_the_first_chunk(service: _Service) -> None:
    asked = {"return_token_ids": True, "return_prompt_text": True}
    whole = service.chat(**asked)
    body = {**_ASK, "messages": [{"role": "user", "content": "hi"}], **asked, "stream": True, "n": 2}
    with httpx.stream("POST", f"{service.url}/v1/chat/completions", json=body, timeout=60) as answer:
        chunks = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    for field in ("prompt_token_ids", "prompt_text"):
        assert chunks[0][field] and chunks[0][field] == whole[field]
    assert not any("prompt_token_ids" in chunk or "prompt_text" in chunk for chunk in chunks[1:])
    assert not any("prompt_token_ids" in choice for chunk in chunks for choice in chunk["choices"])


def test_biases_and_allowed_tokens(service: _Service) -> None:
    assert set(_ids(service.complete(logit_bias={"40": 100}, return_token_ids=True))) == {40}
    assert set(_ids(service.complete(allowed_token_ids=[50, 60], return_token_ids=True))) <= {50, 60}
    plain = _ids(service.complete(return_token_ids=True))
    without = _ids(service.complete(logit_bias={str(plain[0]): -100}, return_token_ids=True))
    assert plain[0] not in without


def test_bad_words(service: _Service) -> None:
    letters = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    for seed in range(6):
        plain = service.complete(seed=seed, max_tokens=40)["text"]
        bad = service.complete(seed=seed, max_tokens=40, bad_words=letters, return_token_ids=True)
        one_letter = {service.codec.encode_text(letter, add_special_tokens=False)[0] for letter in letters}
        assert not one_letter & set(_ids(bad)), plain


def test_stop_tokens_end_the_answer(service: _Service) -> None:
    plain = service.complete(return_token_ids=True, ignore_eos=True)
    last = _ids(plain)[5]
    at = _ids(plain).index(last)
    stopped = service.complete(return_token_ids=True, ignore_eos=True, stop_token_ids=[last])
    assert _ids(stopped) == _ids(plain)[: at + 1]
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == service.codec.decode(_ids(plain)[:at])
    whole = service.complete(ignore_eos=True, stop_token_ids=[last], include_stop_str_in_output=True)
    assert whole["text"] == service.codec.decode(_ids(plain)[: at + 1])


def test_a_stop_string_may_be_part_of_the_text(service: _Service) -> None:
    plain = service.complete(max_tokens=30)["text"]
    stop = plain[6:8]
    at = plain.index(stop)
    assert service.complete(max_tokens=30, stop=stop)["text"] == plain[:at]
    assert service.complete(max_tokens=30, stop=stop, include_stop_str_in_output=True)["text"] == plain[: at + 2]


def test_an_answer_tells_which_stop_ended_it(service: _Service) -> None:
    """`stop_reason`: the string, or the token's id; null for the model's own end token, and for a length."""
    plain = service.complete(return_token_ids=True, ignore_eos=True)
    token, stop = _ids(plain)[5], plain["text"][6:8]
    assert plain["stop_reason"] is None
    assert service.complete(ignore_eos=True, stop_token_ids=[token])["stop_reason"] == token
    assert service.complete(stop=["never", stop], include_stop_str_in_output=True)["stop_reason"] == stop
    end = service.codec.tokenizer.eos_token_id
    ended = service.complete(logit_bias={str(end): 100})
    assert (ended["finish_reason"], ended["stop_reason"]) == ("stop", None)


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_a_stream_tells_it_in_its_last_piece(service: _Service, route: str) -> None:
    """Also where no model is named, which means the served one."""
    asked = {"prompt": "It was a"} if route == "completions" else {"messages": [{"role": "user", "content": "hi"}]}
    whole = service.post(route, **asked, return_token_ids=True, ignore_eos=True)["choices"][0]
    body = {**_ASK, **asked, "ignore_eos": True, "stop_token_ids": [_ids(whole)[5]], "stream": True, "model": None}
    choices = []
    with httpx.stream("POST", f"{service.url}/v1/{route}", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                assert chunk["model"] == "tiny"
                choices += chunk["choices"]
    assert [one.get("stop_reason") for one in choices] == [None] * (len(choices) - 1) + [_ids(whole)[5]]


def test_ends_wait_for_min_tokens(service: _Service) -> None:
    end = service.codec.tokenizer.eos_token_id
    eager: dict[str, Any] = {"logit_bias": {str(end): 12}, "max_tokens": 30, "return_token_ids": True}
    lengths = [len(_ids(service.complete(seed=seed, **eager))) for seed in range(8)]
    assert min(lengths) < 9
    for seed in range(8):
        ids = _ids(service.complete(seed=seed, min_tokens=9, **eager))
        assert end not in ids[:9] and len(ids) >= 9
    plain = service.complete(max_tokens=30, return_token_ids=True)
    stop = service.codec.decode(_ids(plain)[:1])
    assert len(_ids(service.complete(max_tokens=30, stop=stop, min_tokens=5, return_token_ids=True))) >= 5


def test_special_tokens_are_spelt_where_they_are_asked_for(service: _Service) -> None:
    special = service.codec.tokenizer.convert_tokens_to_ids("<|im_start|>")
    fields: dict[str, Any] = {"logit_bias": {str(special): 100}, "max_tokens": 2}
    assert service.complete(**fields)["text"] == ""
    assert service.complete(**fields, skip_special_tokens=False)["text"] == "<|im_start|>" * 2


def test_repetition_is_penalised(service: _Service) -> None:
    plain = _ids(service.complete(temperature=0, max_tokens=40, return_token_ids=True, ignore_eos=True))
    varied = _ids(
        service.complete(temperature=0, max_tokens=40, return_token_ids=True, ignore_eos=True, repetition_penalty=5)
    )
    assert len(set(varied)) > len(set(plain))


def test_log_probabilities_of_the_prompt(service: _Service) -> None:
    """Those of a prompt that another answer extends are those that this answer had."""
    first = service.complete(logprobs=0, return_token_ids=True, ignore_eos=True)
    whole = first["prompt_token_ids"] + _ids(first)
    found = service.complete(prompt=whole, prompt_logprobs=2, max_tokens=1)["prompt_logprobs"]
    assert found[0] is None and len(found) == len(whole)
    for token, logprob, entry in zip(
        _ids(first), first["logprobs"]["token_logprobs"], found[-len(_ids(first)) :], strict=True
    ):
        assert math.isclose(entry[str(token)]["logprob"], logprob, abs_tol=1e-3)
        assert len(entry) in (2, 3)
    again = service.complete(prompt=whole, prompt_logprobs=2, max_tokens=1)["prompt_logprobs"]
    assert len(again) == len(whole)  # although the prompt is in the prefix cache by now


def test_an_echo_begins_with_the_prompt(service: _Service) -> None:
    plain = service.complete(logprobs=1)
    echoed = service.complete(logprobs=1, echo=True)
    assert echoed["text"] == "It was a" + plain["text"]
    num_prompt = len(service.codec.encode_text("It was a"))
    logprobs = echoed["logprobs"]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["tokens"][num_prompt:] == plain["logprobs"]["tokens"]
    assert logprobs["text_offset"][0] == 0
    assert logprobs["text_offset"][num_prompt] == len("It was a")
    assert "".join(logprobs["tokens"][:num_prompt]) == "It was a"


def test_an_echo_without_an_answer_tells_of_the_prompt_only(service: _Service) -> None:
    """As lm-eval asks for log-likelihoods; nothing is drawn, and the rows stay as they are for others."""
    ids = list(service.codec.encode_text("It was a cold day"))
    ask: dict[str, Any] = {"prompt": [ids, ids[:3]], "logprobs": 1, "echo": True}
    with_answer = service.post("completions", **ask, max_tokens=1)
    alone = service.post("completions", **ask, max_tokens=0)
    for choice, other, prompt in zip(alone["choices"], with_answer["choices"], ask["prompt"], strict=True):
        assert choice["text"] == service.codec.decode(prompt) and choice["finish_reason"] == "length"
        for name, values in choice["logprobs"].items():
            assert values == other["logprobs"][name][: len(prompt)] and len(values) == len(prompt)
    assert alone["usage"]["completion_tokens"] == 0 and alone["osd"]["rounds"] == 0
    streamed = httpx.post(f"{service.url}/v1/completions", json={**_ASK, **ask, "max_tokens": 0, "stream": True})
    events = [json.loads(line[6:]) for line in streamed.text.split("\n\n")[:-2]]
    assert [event["choices"][0]["text"] for event in events] == [choice["text"] for choice in alone["choices"]]


def test_log_probabilities_of_the_prompts_own_tokens_only(service: _Service) -> None:
    found = service.complete(prompt_logprobs=0, return_token_ids=True)
    entries = zip(found["prompt_token_ids"][1:], found["prompt_logprobs"][1:], strict=True)
    assert all(list(entry) == [str(token)] for token, entry in entries)


def test_tokens_are_named_by_id(service: _Service) -> None:
    choice = service.complete(logprobs=0, return_tokens_as_token_ids=True, return_token_ids=True)
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in _ids(choice)]
    content = service.chat(logprobs=True, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]["content"]
    assert all(one["token"].startswith("token_id:") for one in content)


@pytest.mark.parametrize(("side", "kept"), [("left", slice(-3, None)), ("right", slice(0, 3))])
def test_a_prompt_is_truncated(service: _Service, side: str, kept: slice) -> None:
    ids = service.codec.encode_text("It was a cold day")
    choice = service.complete(prompt=list(ids), truncate_prompt_tokens=3, truncation_side=side, return_token_ids=True)
    assert choice["prompt_token_ids"] == list(ids[kept])


def test_a_prompt_that_is_too_long_is_truncated_to_the_context(service: _Service) -> None:
    choice = service.complete(prompt=[7] * 3000, truncate_prompt_tokens=-1, return_token_ids=True)
    assert len(choice["prompt_token_ids"]) == service.codec.context_tokens - 1


def test_choices_share_their_prompt(service: _Service) -> None:
    prompt = list(range(10, 60))
    usage = service.post("completions", prompt=prompt, n=4)["usage"]
    assert usage["prompt_tokens"] == 50
    assert len(service.engine.requests) >= 4
    stats = service.post("completions", prompt=list(range(100, 150)), n=4, max_tokens=3)
    # Of four prefills, three find all but the last token in the first one's cache.
    assert stats["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert service.engine.prefilled(4) == [50, 1, 1, 1]


def test_named_tokens_take_the_place_of_the_most_likely_ones(service: _Service) -> None:
    named = [40, 41, 42]
    content = service.chat(logprobs=True, logprob_token_ids=named)["choices"][0]["logprobs"]["content"]
    spelt = {service.codec.token_text(token) for token in named}
    assert all({one["token"] for one in entry["top_logprobs"]} == spelt for entry in content)
    top = service.complete(logprobs=1, logprob_token_ids=named)["logprobs"]["top_logprobs"]
    assert all(spelt <= set(entry) and len(entry) <= 4 for entry in top)


def test_a_repetition_ends_the_answer(service: _Service) -> None:
    limit = {"max_pattern_size": 2, "min_count": 3}
    choice = service.complete(logit_bias={"40": 100}, repetition_detection=limit, return_token_ids=True)
    assert _ids(choice) == [40] * 3 and choice["finish_reason"] == "length"
    none = service.complete(logit_bias={"40": 100}, repetition_detection={"max_pattern_size": 0})
    assert none["finish_reason"] == "length" and len(none["text"]) > len(choice["text"])


def test_an_answer_has_the_id_that_was_asked_for(service: _Service) -> None:
    """Also of two at once, which stay apart in the engine."""
    assert service.post("completions", prompt="a", request_id="mine")["id"] == "cmpl-mine"
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda seed: service.chat(request_id="mine", seed=seed), (1, 2)))
    assert [answer["id"] for answer in both] == ["chatcmpl-mine"] * 2
    ids = [request.request_id for request in service.engine.requests[-2:]]
    assert len(set(ids)) == 2 and not any("mine" in one for one in ids)


def _events(service: _Service, **fields: Any) -> list[dict[str, Any]]:
    body = {**_ASK, "prompt": "It was a", "stream": True, "return_token_ids": True, "ignore_eos": True, **fields}
    answer = httpx.post(f"{service.url}/v1/completions", json=body, timeout=60)
    return [json.loads(line[6:])["choices"][0] for line in answer.text.split("\n\n")[:-2]]


@pytest.mark.parametrize("length", [0, 2])
def test_a_stream_waits_for_as_many_tokens_as_were_asked_for(service: _Service, length: int) -> None:
    """After the first, and but for the last; what is said stays the same."""
    fields: dict[str, Any] = {"max_tokens": 24, "logprobs": 0, "osd": {"speculation_length": length}}
    plain, grouped = _events(service, **fields), _events(service, stream_interval=7, **fields)
    assert len(grouped) < len(plain)
    assert all(7 <= len(one["token_ids"]) <= 7 + length for one in grouped[1:-1])
    assert "".join(one["text"] for one in grouped) == "".join(one["text"] for one in plain)
    ids = [token for one in grouped for token in one["token_ids"]]
    assert ids == [token for one in plain for token in one["token_ids"]]
    tokens = [token for one in grouped for token in one["logprobs"]["tokens"]]
    assert tokens == [token for one in plain for token in one["logprobs"]["tokens"]]
    assert grouped[-1]["finish_reason"] == "length"


def test_prompts_are_shared_under_the_same_salt_only(service: _Service) -> None:
    prompt = list(range(200, 250))
    for salt, prefilled in ((None, 50), ("x", 50), ("x", 1), (None, 1)):
        service.post("completions", prompt=prompt, cache_salt=salt)
        assert service.engine.prefilled(1) == [prefilled], salt


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
        ({"logprob_token_ids": [99999], "logprobs": 0}, "logprob_token_ids"),
        ({"repetition_detection": {"max_pattern_size": 3}}, "repetition_detection.min_count"),
        (
            {"repetition_detection": {"max_pattern_size": 3, "min_pattern_size": 4, "min_count": 2}},
            "repetition_detection.min_pattern_size",
        ),
        ({"request_id": "a b"}, "request_id"),
        ({"stream_interval": 0}, "stream_interval"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"allowed_token_ids": [99999]}, "allowed_token_ids"),
        ({"min_tokens": 13}, "min_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_what_cannot_be_is_named(service: _Service, fields: dict[str, Any], param: str) -> None:
    assert service.refused(**fields) == (400, param)
