"""What each token adds to a text, for tokenizers of every kind: bytes, text, offsets, and the text of answers."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from osd.text.codec import TextCodec
from osd.text.stop_strings import AnswerText
from osd.text.stream import ByteStream
from tests.kit.tokenizer_kit import KINDS, LINES, SPECIAL, tokenizer_of

BYTE_KINDS = [kind for kind in KINDS if kind.startswith("byte")]


@lru_cache
def _codec(kind: str) -> TextCodec:
    return TextCodec(tokenizer_of(kind), model_id="tiny", context_tokens=4096)


def _ids(codec: TextCodec, text: str) -> tuple[int, ...]:
    return tuple(codec.tokenizer(text, add_special_tokens=False)["input_ids"])


def _answer(codec: TextCodec, ids: tuple[int, ...], prompt: tuple[int, ...] = (), stop: tuple[str, ...] = ()) -> str:
    """Token by token, as a stream hands it out."""
    answer, pieces = AnswerText(codec, stop, prompt), []
    for token in ids:
        stopped = answer.push(token)
        pieces.append(answer.take(final=stopped))
        if stopped:
            break
    return "".join(pieces) + answer.take(final=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("line", LINES)
def test_the_text_of_an_answer_is_what_follows_its_prompt(kind: str, line: str) -> None:
    """Wherever the answer begins: at a word's space, within a word, after a line break."""
    codec = _codec(kind)
    ids = _ids(codec, line)
    for at in range(1, len(ids)):
        expected = codec.decode(ids)[len(codec.decode(ids[:at])) :]
        assert _answer(codec, ids[at:], ids[:at]) == expected
        whole = AnswerText(codec, (), ids[:at])
        for token in ids[at:]:
            whole.push(token)
        assert whole.take(final=True) == expected
        resumed = AnswerText(codec, (), ids[:at])
        for token in ids[at:]:
            resumed.push(token)
        resumed.skip(3)
        assert resumed.take(final=True) == expected[3:]


@pytest.mark.parametrize("kind", ["byte fallback", "byte fallback, legacy", "unigram"])
def test_a_stop_string_that_begins_with_the_answers_first_space(kind: str) -> None:
    codec = _codec(kind)
    prompt, whole = _ids(codec, "It was a"), _ids(codec, "It was a cold day")
    assert whole[: len(prompt)] == prompt, "else the test says nothing"
    answer = whole[len(prompt) :]
    assert _answer(codec, answer, prompt) == " cold day"
    assert _answer(codec, answer, prompt, stop=(" cold ",)) == ""
    special = (codec.tokenizer.bos_token_id, *prompt, codec.tokenizer.eos_token_id)
    assert _answer(codec, answer, special) == " cold day"
    # With no text before it, the answer is the beginning of a text, whose first space is not written out.
    assert _answer(codec, answer, (codec.tokenizer.bos_token_id,)) == "cold day"


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=50)
@given(
    text=st.one_of(st.sampled_from(LINES), st.text(st.characters(exclude_categories=["Cs"]), max_size=12)),
    prompt=st.sampled_from(LINES),
)
def test_joined_bytes_spell_the_text(kind: str, text: str, prompt: str) -> None:
    codec = _codec(kind)
    ids, prompt_ids = _ids(codec, text), _ids(codec, prompt)
    assert b"".join(map(codec.token_bytes, ids)) == _answer(codec, ids, prompt_ids).encode()


@pytest.mark.parametrize("kind", BYTE_KINDS)
def test_a_token_that_is_part_of_a_character(kind: str) -> None:
    codec = _codec(kind)
    ids = _ids(codec, "a😀")[-4:]
    assert [list(codec.token_bytes(token)) for token in ids] == [[0xF0], [0x9F], [0x98], [0x80]]
    assert [codec.token_text(token) for token in ids] == [r"\xf0", r"\x9f", r"\x98", r"\x80"]
    assert _answer(codec, ids[:3], _ids(codec, "a")) == ""
    assert _answer(codec, ids, _ids(codec, "a")) == "😀"


def test_tokens_of_several_bytes_of_a_character() -> None:
    """As 😀 is in GPT-2's vocabulary: two tokens of two bytes each."""
    letters = "ðŁĺĢ"  # how byte-level BPE writes F0 9F 98 80
    vocab = {piece: index for index, piece in enumerate([*letters, letters[:2], letters[2:]])}
    tokenizer = Tokenizer(models.BPE(vocab, [(letters[0], letters[1]), (letters[2], letters[3])]))
    tokenizer.decoder = decoders.ByteLevel()
    codec = TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer), model_id="tiny", context_tokens=64)
    assert [list(codec.token_bytes(token)) for token in (4, 5)] == [[240, 159], [152, 128]]
    assert [codec.token_text(token) for token in (4, 5)] == [r"\xf0\x9f", r"\x98\x80"]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_add_nothing_and_are_named(kind: str) -> None:
    codec = _codec(kind)
    for special in SPECIAL:
        token = codec.tokenizer.convert_tokens_to_ids(special)
        assert (codec.token_bytes(token), codec.token_text(token)) == (b"", special)
    assert codec.token_bytes(codec.vocab_tokens + 5) == b"" and codec.token_text(codec.vocab_tokens + 5) == ""


@pytest.mark.parametrize("kind", BYTE_KINDS)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_offsets_are_places_in_the_text(kind: str, data: st.DataObject) -> None:
    """Every token whose bytes are whole characters stands in the text where its offset says."""
    codec = _codec(kind)
    prompt = _ids(codec, data.draw(st.sampled_from(["so", "so 😀"])))[: data.draw(st.integers(1, 5))]
    letters = data.draw(st.lists(st.sampled_from([*"ab é€😀", "\N{REPLACEMENT CHARACTER}"]), max_size=8))
    ids = list(_ids(codec, "".join(letters)))
    missing = data.draw(st.integers(0, 2 * len(ids)))
    del ids[missing : missing + 1]  # what is left of a character is replaced
    text, offsets = _answer(codec, tuple(ids), prompt), codec.offsets(prompt)
    places = [offsets.next(codec.token_bytes(token)) for token in ids]
    assert places == sorted(places)
    for token, place in zip(ids, places, strict=True):
        try:
            whole = codec.token_bytes(token).decode()
        except UnicodeDecodeError:
            assert 0 <= place <= len(text)
        else:
            assert text[place : place + len(whole)] == whole


@pytest.mark.parametrize("kind", BYTE_KINDS)
def test_the_offsets_of_a_character_of_several_tokens(kind: str) -> None:
    codec, offsets = _codec(kind), _codec(kind).offsets(_ids(_codec(kind), "x"))
    ids = _ids(codec, "a😀b")[-5:]
    assert [offsets.next(codec.token_bytes(token)) for token in ids] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("decoder", "is_bytes"),
    [
        (decoders.ByteLevel(), True),
        (decoders.Sequence([decoders.Sequence([decoders.ByteLevel()])]), True),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]), True),
        (decoders.Metaspace(prepend_scheme="never"), True),
        (decoders.Sequence([decoders.Strip(" ", 1, 0), decoders.Fuse()]), False),  # of every token
        (decoders.Replace("ab", "c"), False),
        (decoders.WordPiece(), False),
        (decoders.BPEDecoder(), False),
        (None, False),
    ],
)
def test_decoders_whose_tokens_are_bytes_by_themselves(decoder: decoders.Decoder | None, is_bytes: bool) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "▁b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    if decoder is not None:
        tokenizer.decoder = decoder
    codec = TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer), model_id="tiny", context_tokens=64)
    assert isinstance(codec.stream(), ByteStream) == is_bytes
    assert _answer(codec, (0, 1, 0)) == codec.decode((0, 1, 0))
