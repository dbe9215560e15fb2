"""Prompts become token ids without keeping other requests' streams waiting."""

from __future__ import annotations

import threading

import pytest

from tests.kit.fakes import FakeCodec
from tests.kit.http_client import COMPLETION, http_client


class WatchedCodec(FakeCodec):
    """Knows on which threads it was used."""

    def __init__(self) -> None:
        super().__init__(context_tokens=20_000)
        self.threads: set[threading.Thread] = set()

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        self.threads.add(threading.current_thread())
        return super().encode_text(text)


@pytest.mark.parametrize(
    ("prompt", "is_aside"), [("hi", False), (["hi"] * 100, False), ("hi" * 5000, True), (["hi" * 100] * 100, True)]
)
async def test_much_text_is_not_tokenised_on_the_event_loop(prompt: str | list[str], is_aside: bool) -> None:
    codec = WatchedCodec()
    async with http_client(codec=codec) as client:
        answer = await client.post("/v1/completions", json={**COMPLETION, "prompt": prompt})
    assert answer.status_code == 200
    assert (threading.current_thread() not in codec.threads) == is_aside
