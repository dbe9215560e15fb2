"""A random tiny model behind the HTTP front, in this process: no Ray, no Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from osd.engine.loop import EngineLoop
from osd.ports.outcomes import OutcomeRecorder
from osd.records.query import Request, TokenDelta
from osd.text.codec import TextCodec
from tests.kit.engine_kit import make_engine, make_target, model_drafter, perturbed, tiny_llama
from tests.kit.fakes import FakeEngineClient
from tests.kit.tokenizer_kit import tokenizer_of

CONTEXT_TOKENS = 2048
CHATML_WITH_TOOLS = (
    "{% for t in tools or [] %}{{ t.function.name }} {{ t.function.description }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    '{% for c in m.tool_calls or [] %}<tool_call>{"name": "{{ c.function.name }}"}</tool_call>{% endfor %}<|im_end|>\n'
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class LocalClient(FakeEngineClient):
    """See `serving.engine_client.EngineClient`; queries are answered by an engine on a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._arrived: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Queue[TokenDelta]]] = {}
        self.loop: EngineLoop | None = None
        self._prefilled: list[int] = []

    def prefilled(self, num: int) -> list[int]:
        """How many tokens of their prompts the last finished queries had to prefill, most first."""
        return sorted(self._prefilled[-num:], reverse=True)

    def deliver(self, deltas: list[TokenDelta]) -> None:
        for delta in deltas:
            if (waiting := self._arrived.get(delta.request_id)) is not None:
                waiting[0].call_soon_threadsafe(waiting[1].put_nowait, delta)

    async def generate(self, request: Request) -> AsyncIterator[TokenDelta]:
        assert self.loop is not None
        self.requests.append(request)
        queue: asyncio.Queue[TokenDelta] = asyncio.Queue()
        self._arrived[request.request_id] = (asyncio.get_running_loop(), queue)
        try:
            await asyncio.wrap_future(self.loop.call(lambda engine: engine.submit(request)))
            while True:
                delta = await queue.get()
                yield delta
                if delta.stats is not None:
                    self._prefilled.append(delta.stats.prompt_tokens - delta.stats.reused_tokens)
                if delta.finish_reason is not None:
                    return
        finally:
            del self._arrived[request.request_id]
            self.loop.cancel(request.request_id)


@contextmanager
def local_client(
    chat_template: str = CHATML_WITH_TOOLS, recorder: OutcomeRecorder | None = None
) -> Iterator[tuple[LocalClient, TextCodec]]:
    """A client of a running engine, and its tokenizer."""
    tokenizer = tokenizer_of("byte-level", chat_template)
    codec = TextCodec(tokenizer, model_id="tiny", context_tokens=CONTEXT_TOKENS)
    model = tiny_llama(3, vocab_tokens=codec.vocab_tokens)
    model.config.max_position_embeddings = CONTEXT_TOKENS
    target = make_target(model, eos_ids=[tokenizer.eos_token_id], num_slots=8, context_tokens=CONTEXT_TOKENS)
    engine = make_engine(target, model_drafter(perturbed(model, 0.05), target), codec=codec, recorder=recorder)
    client = LocalClient()
    client.loop = EngineLoop(engine, client.deliver)
    client.loop.start()
    try:
        yield client, codec
    finally:
        client.loop.stop()
