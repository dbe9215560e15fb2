"""The incremental text of an answer, with a real byte-level tokenizer: every byte of a character is a token."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from osd.records.errors import OsdError
from osd.text.codec import TextCodec
from osd.text.stop_strings import AnswerText
from osd.text.stream import ByteStream, unfinished_end
from tests.kit.engine_kit import char_codec
from tests.kit.saved_models import EOS, save_llama, save_tokenizer


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return TextCodec(AutoTokenizer.from_pretrained(folder), model_id="bytes", context_tokens=64)


def _ids(codec: TextCodec, text: str) -> tuple[int, ...]:
    ids = codec.encode_text(text)
    assert len(ids) == len(text.encode()), "a token a byte"
    return ids


def _stream(answer: AnswerText, ids: tuple[int, ...]) -> tuple[list[str], bool]:
    """Every piece handed out, token by token, and whether a stop string ended it."""
    pieces = []
    for token in ids:
        stopped = answer.push(token)
        pieces.append(answer.take(final=stopped))
        if stopped:
            return pieces, True
    pieces.append(answer.take(final=True))
    return pieces, False


def test_a_character_comes_when_its_last_byte_does(codec: TextCodec) -> None:
    pieces, stopped = _stream(AnswerText(codec), _ids(codec, "aé€😀b"))
    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "😀", "b", ""]
    assert not stopped


def test_bytes_that_are_no_character_are_replaced_not_lost(codec: TextCodec) -> None:
    euro = _ids(codec, "€")
    pieces, _ = _stream(AnswerText(codec), (*_ids(codec, "a"), *euro[:2], *_ids(codec, "b")))
    assert "".join(pieces) == "a\N{REPLACEMENT CHARACTER}b"
    pieces, _ = _stream(AnswerText(codec), (*_ids(codec, "a"), euro[1]))  # begins no character either
    assert "".join(pieces) == "a\N{REPLACEMENT CHARACTER}"


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_the_pieces_make_the_whole(text: str) -> None:
    """Whatever the text, nothing is lost, doubled or taken back (over characters of one token each)."""
    codec = TextCodec(_CodePoints(), model_id="points", context_tokens=64)
    pieces, _ = _stream(AnswerText(codec, ("\N{SNOWMAN}☃stop", "never this")), tuple(map(ord, text)))
    assert "".join(pieces) == text.split("\N{SNOWMAN}☃stop")[0]


@pytest.fixture(scope="module")
def odd_codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    """A byte-level tokenizer with tokens added: two that are written as they are, and a special one."""
    folder = tmp_path_factory.mktemp("odd")
    save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<tool é>", "plain"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<hidden>"]})
    return TextCodec(tokenizer, model_id="odd", context_tokens=64)


@settings(deadline=None)
@given(st.data())
def test_bytes_in_any_order_are_what_the_tokenizer_makes_of_them(odd_codec: TextCodec, data: st.DataObject) -> None:
    """Unfinished characters, bytes that no character has, added tokens, ids that the tokenizer does not know."""
    ids = tuple(data.draw(st.lists(st.integers(0, odd_codec.vocab_tokens + 1), max_size=20)))
    assert isinstance(odd_codec.stream(), ByteStream)
    pieces, _ = _stream(AnswerText(odd_codec), ids)
    unfinished = unfinished_end(b"".join(map(odd_codec.token_bytes, ids)))
    assert "".join(pieces) == odd_codec.decode(ids).removesuffix("\N{REPLACEMENT CHARACTER}" if unfinished else "")


@pytest.mark.parametrize("end", ["max_tokens", "stop"])
def test_an_answer_cut_in_a_character_ends_before_it(codec: TextCodec, end: str) -> None:
    ids = (*_ids(codec, "aé"), *_ids(codec, "😀")[:3])
    streamed, stopped = _stream(AnswerText(codec, ("never",) if end == "stop" else ()), ids)
    whole = AnswerText(codec)
    for token in ids:
        whole.push(token)
    assert "".join(streamed) == whole.take(final=True) == "aé"
    assert not stopped


def test_a_replacement_character_that_the_model_wrote_is_kept(codec: TextCodec) -> None:
    pieces, _ = _stream(AnswerText(codec), _ids(codec, "a\N{REPLACEMENT CHARACTER}"))
    assert "".join(pieces) == "a\N{REPLACEMENT CHARACTER}"


def test_a_character_that_the_prompt_began_is_the_answers(codec: TextCodec) -> None:
    """As when an answer that was cut in a character is sent back as token ids."""
    prompt, answer = _ids(codec, "so 😀")[:5], _ids(codec, "so 😀!")[5:]
    pieces, _ = _stream(AnswerText(codec, (), prompt), answer)
    assert pieces == ["", "😀", "!", ""]


class _CodePoints:
    def __len__(self) -> int:
        return 0x110000

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one two three", ("four",), None),
        ("ababac!", ("abac",), "ab"),
        ("aaaab!", ("aab",), "aa"),
        ("x€y", ("€",), "x"),
        ("price 5€ now", ("5€ n",), "price "),
        ("stop", ("stop",), ""),
        ("say END", ("END\n", "END"), "say "),
        ("say EN", ("END",), None),
    ],
)
def test_a_stop_string_ends_the_text_before_it(
    codec: TextCodec, text: str, stop: tuple[str, ...], expected: str | None
) -> None:
    pieces, stopped = _stream(AnswerText(codec, stop), _ids(codec, text))
    assert stopped == (expected is not None)
    assert "".join(pieces) == (text if expected is None else expected)


def test_a_stop_string_within_one_token() -> None:
    answer = AnswerText(TextCodec(_Words(), model_id="words", context_tokens=8), ("lo w",))
    assert [answer.push(0), answer.push(1)] == [False, True]
    assert answer.take(final=True) == "hel"


class _Words:
    def __len__(self) -> int:
        return 3

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(["hello", " world", "stop\N{REPLACEMENT CHARACTER}"][token] for token in ids)


def test_a_stop_string_in_what_was_still_incomplete_at_the_end() -> None:
    """One token ends a stop string and begins a character that never comes."""
    answer = AnswerText(TextCodec(_Words(), model_id="words", context_tokens=8), ("stop",))
    assert [answer.push(0), answer.push(2)] == [False, False]
    assert answer.take() == "hello"
    assert answer.take(final=True) == ""
    assert answer.matched == "stop"


def test_what_may_begin_a_stop_string_is_held_back(codec: TextCodec) -> None:
    pieces, stopped = _stream(AnswerText(codec, ("<end>", "<eof")), _ids(codec, "a<e<enx"))
    assert pieces == ["a", "", "", "<e", "", "", "<enx", ""]
    assert not stopped
    # The query may end amid a beginning: then it is text like any other.
    pieces, stopped = _stream(AnswerText(codec, ("<end>",)), _ids(codec, "a<en"))
    assert pieces == ["a", "", "", "", "<en"]
    assert not stopped


@pytest.mark.parametrize("stop", [("abab",), ("aab", "ba"), ("bbb", "abb", "aabba")])
def test_no_more_is_held_back_than_may_begin_a_stop_string(codec: TextCodec, stop: tuple[str, ...]) -> None:
    for letters in product("abc", repeat=6):
        text = "".join(letters)
        answer = AnswerText(codec, stop)
        if any(answer.push(token) for token in _ids(codec, text)):
            continue
        begun = [size for one in stop for size in range(len(one)) if text.endswith(one[:size])]
        assert answer.take() == text[: len(text) - max(begun)]


def test_special_tokens_are_no_text(codec: TextCodec) -> None:
    end = codec.tokenizer.eos_token_id
    pieces, _ = _stream(AnswerText(codec), (*_ids(codec, "ok"), end))
    assert "".join(pieces) == "ok"
    assert codec.token_text(end) == EOS
    assert codec.token_text(_ids(codec, "o")[0]) == "o"


@pytest.mark.parametrize("num_chars", range(7))
def test_a_resumed_answer_hands_out_what_the_client_lacks(codec: TextCodec, num_chars: int) -> None:
    text = "né€<enough"
    answer = AnswerText(codec, ("<end>",))
    for token in _ids(codec, text[:6]):
        answer.push(token)
    answer.skip(num_chars)
    first = answer.take()
    for token in _ids(codec, text[6:]):
        answer.push(token)
    assert first + answer.take(final=True) == text[num_chars:]


def test_a_codec_of_a_folder(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model")
    codec = TextCodec.open(folder, "tiny", 128)
    assert codec.decode(codec.encode_text("héllo")) == "héllo"
    assert codec.context_tokens == 128
    assert TextCodec.open(folder, "tiny", 10**6).context_tokens == 256  # what the model allows
    assert codec.end_ids == {codec.tokenizer.eos_token_id}
    chat = codec.encode_chat([{"role": "user", "content": "hi"}])
    assert codec.decode(chat) == "user: hi\nassistant:"


def test_a_vocabulary_is_the_models(tmp_path: Path) -> None:
    """A tokenizer may know tokens that the model lacks, or lack some of a model's, which pads its vocabulary."""
    folder = save_llama(tmp_path / "model")
    codec = TextCodec.open(folder, "tiny", 128)
    vocab_tokens = codec.vocab_tokens
    codec.tokenizer.add_tokens(["<tool>"])
    codec.tokenizer.save_pretrained(folder)
    more = TextCodec.open(folder, "tiny", 128)
    assert len(more.tokenizer) == vocab_tokens + 1 and more.vocab_tokens == vocab_tokens
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": vocab_tokens + 64}))
    padded = TextCodec.open(folder, "tiny", 128)
    assert padded.vocab_tokens == vocab_tokens + 64
    assert padded.decode((vocab_tokens + 5,)) == padded.token_text(vocab_tokens + 5) == ""


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OsdError, match="cannot load the tokenizer of"):
        TextCodec.open(tmp_path, "tiny", 128)


def test_chat_needs_a_template_that_takes_the_messages(codec: TextCodec) -> None:
    with pytest.raises(ValueError, match="no chat template"):
        char_codec().encode_chat([{"role": "user", "content": "hi"}])
    tokenizer: Any = codec.tokenizer
    picky = TextCodec(tokenizer, model_id="picky", context_tokens=64)
    before = tokenizer.chat_template
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    try:
        with pytest.raises(ValueError, match="picky refuses these messages: roles must alternate"):
            picky.encode_chat([{"role": "user", "content": "hi"}])
    finally:
        tokenizer.chat_template = before
