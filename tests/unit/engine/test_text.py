"""The engine's text follows its prompt, with tokens whose spaces and characters depend on what came before."""

from __future__ import annotations

import pytest

from osd.records.query import Request
from osd.text.codec import TextCodec
from tests.kit.engine_kit import make_engine, make_target, plain_greedy, plain_hidden, run, tiny_llama
from tests.kit.tokenizer_kit import tokenizer_of
from tests.unit.engine.cases import DRAFTERS, greedy


@pytest.mark.parametrize("kind", ["byte fallback", "unigram"])
def test_the_first_space_of_an_answer_is_its_own(kind: str) -> None:
    codec = TextCodec(tokenizer_of(kind), model_id="tiny", context_tokens=64)
    model, prompt = tiny_llama(0, vocab_tokens=codec.vocab_tokens), codec.encode_text("It was a")
    word = codec.encode_text("It was a cold")[len(prompt)]
    # After this prompt the model goes on with that word.
    model.lm_head.weight[word] = 10 * plain_hidden(model, prompt)[-1]
    expected = plain_greedy(model, prompt, 6)
    assert expected[0] == word
    target = make_target(model)
    engine = make_engine(target, DRAFTERS["model, good"](model, target), codec=codec)
    whole = codec.decode((*prompt, *expected))[len(codec.decode(prompt)) :]
    assert whole.startswith(" ")
    answers = run(
        engine,
        [
            Request(request_id="whole", prompt_ids=prompt, params=greedy(6)),
            Request(request_id="stopped", prompt_ids=prompt, params=greedy(6, stop=(whole[:2],))),
            Request(
                request_id="resumed",
                prompt_ids=prompt,
                params=greedy(6),
                resume_ids=tuple(expected[:1]),
                resume_chars=1,
            ),
        ],
    )
    assert (answers["whole"].ids, answers["whole"].text) == (expected, whole)
    assert (answers["stopped"].text, answers["stopped"].finish_reason) == ("", "stop")
    assert answers["resumed"].text == whole[1:]
