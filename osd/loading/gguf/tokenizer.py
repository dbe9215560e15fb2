"""Builds a tokenizer from a GGUF file's metadata that yields the same tokens as llama.cpp."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from osd.loading.gguf.header import Header
from osd.loading.gguf.pre_tokenizers import pre_tokenizer
from osd.loading.gguf.special_tokens import CONTROL, UNKNOWN, USER_DEFINED, token_id, token_kinds
from osd.records.errors import OsdError

_log = logging.getLogger(__name__)
_SPACE = "\u2581"
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}
"""The ids in a SentencePiece vocabulary that does not name them."""


def read_tokenizer(header: Header) -> Any:
    """The transformers tokenizer of the model in a file, with its chat template.

    Raises:
        OsdError: the file has no tokenizer, or one of a kind that is not supported.
    """
    from transformers import PreTrainedTokenizerFast

    metadata, tokens = header.metadata, token_texts(header)
    try:
        backend = _backend(header, tokens)
    except OsdError as error:
        raise OsdError(f"{header.path}: {error}") from None
    named = {
        name: tokens[number]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (number := _named_id(metadata, key, len(tokens))) is not None
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=int(metadata.get(f"{header.architecture}.context_length", 1 << 30)),
        **{f"{name}_token": text for name, text in named.items()},
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer


def token_texts(header: Header) -> list[str]:
    """The vocabulary: each token's text, by id.

    Raises:
        OsdError: there is none, or two tokens have the same text.
    """
    tokens = [
        text or f"[EMPTY_{number}]" for number, text in enumerate(header.metadata.get("tokenizer.ggml.tokens", []))
    ]
    if not tokens:
        raise OsdError(f"{header.path} has no vocabulary (tokenizer.ggml.tokens); convert the model again")
    if len(set(tokens)) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise OsdError(f"{header.path} has the token {twice!r} twice (tokenizer.ggml.tokens); convert the model again")
    return tokens


def _named_id(metadata: Mapping[str, Any], name: str, vocab_tokens: int) -> int | None:
    number = token_id(metadata, name, vocab_tokens)
    if number is None and metadata.get("tokenizer.ggml.model") == "llama":
        return _SENTENCEPIECE_IDS.get(name)
    return number


def _backend(header: Header, tokens: Sequence[str]) -> Tokenizer:
    metadata = header.metadata
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer, add_bos = _byte_pairs(metadata, tokens)
    elif kind == "llama":
        tokenizer, add_bos = _sentencepiece(metadata, tokens), True
    else:
        raise OsdError(
            f"tokenizer.ggml.model is {kind!r}; 'gpt2' and 'llama' are read: give the model's own folder instead"
        )
    _add_special_tokens(tokenizer, header, tokens)
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", add_bos)
    _frame(tokenizer, metadata, tokens, add_bos=add_bos, add_eos=metadata.get("tokenizer.ggml.add_eos_token", False))
    return tokenizer


def _byte_pairs(metadata: Mapping[str, Any], tokens: Sequence[str]) -> tuple[Tokenizer, bool]:
    """Byte-level BPE, as in GPT-2."""
    name = metadata.get("tokenizer.ggml.pre")
    if name is None:
        _log.warning(
            "the GGUF file has no tokenizer.ggml.pre: old files lack it, and their answers may be worse for it"
        )
    rule = pre_tokenizer(name or "default")
    if "tokenizer.ggml.merges" not in metadata:
        raise OsdError("there are no merges (tokenizer.ggml.merges); convert the model again")
    merges = [_pair(merge) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(_bpe(tokens, merges, ignore_merges=rule.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(split), "isolated") for split in rule.splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rule.add_bos


def _pair(merge: str) -> tuple[str, str]:
    """The two sides of a merge, separated by one space; the first side may itself begin with a space."""
    cut = merge.find(" ", 1)
    return merge[:cut], merge[cut + 1 :]


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    """SentencePiece BPE: merges the adjacent pair whose merged token has the highest score first."""
    scores = metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    unknown = tokens[_named_id(metadata, "unknown", len(tokens)) or 0]
    merges = _merges_by_score(tokens, scores)
    tokenizer = Tokenizer(_bpe(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", _SPACE)
    decoded = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        decoded.append(decoders.Strip(content=" ", left=1))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(decoded)
    return tokenizer


def _merges_by_score(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    ids = {text: number for number, text in enumerate(tokens)}
    pairs = [
        (-scores[number], ids[text[:cut]], ids[text[cut:]], (text[:cut], text[cut:]))
        for text, number in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    return [pair for *_, pair in sorted(pairs)]


def _bpe(tokens: Sequence[str], merges: Sequence[tuple[str, str]], **options: Any) -> models.BPE:
    vocab = {text: number for number, text in enumerate(tokens)}
    try:
        return models.BPE(vocab=vocab, merges=list(merges), **options)
    except Exception as error:  # the package raises Exception itself
        raise OsdError(f"its merges do not fit its vocabulary ({error}); convert the model again") from None


def _add_special_tokens(tokenizer: Tokenizer, header: Header, tokens: Sequence[str]) -> None:
    """Register special tokens, which are matched before splitting; control tokens only where those are asked for."""
    strips = any(name in str(header.metadata.get("general.name", "")).lower() for name in ("phi-3", "phi3"))
    keeps = {"<unk>", "<s>", "<|endoftext|>"}
    added: dict[bool, list[AddedToken]] = {True: [], False: []}
    for text, kind in zip(tokens, token_kinds(header.metadata, tokens), strict=False):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            token = AddedToken(text, normalized=False, rstrip=strips and text not in keeps)
            added[kind != USER_DEFINED].append(token)
    tokenizer.add_special_tokens(added[True])
    tokenizer.add_tokens(added[False])


def _frame(
    tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: Sequence[str], *, add_bos: bool, add_eos: bool
) -> None:
    """Add the tokens that begin and end a prompt (BOS, EOS)."""
    ids = {name: _named_id(metadata, name, len(tokens)) for name in ("bos", "eos")}
    for name, wanted in (("bos", add_bos), ("eos", add_eos)):
        if wanted and ids[name] is None:
            raise OsdError(f"tokenizer.ggml.add_{name}_token is set without a {name} token; convert the model again")
    before = [tokens[ids["bos"]]] if add_bos and ids["bos"] is not None else []
    after = [tokens[ids["eos"]]] if add_eos and ids["eos"] is not None else []
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", "$B", *after],
            special_tokens=[(text, tokens.index(text)) for text in dict.fromkeys((*before, *after))],
        )
