"""A tokenizer of letters in whose terms grammars can be written: token i is the i-th letter."""

from __future__ import annotations

import string

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from osd.text.codec import TextCodec
from tests.kit.engine_kit import CONTEXT_TOKENS, VOCAB_TOKENS


def letter_codec() -> TextCodec:
    """For the engine kit's vocabulary."""
    letters = {letter: token for token, letter in enumerate(string.ascii_lowercase[:VOCAB_TOKENS])}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    return TextCodec(tokenizer, model_id="letters", context_tokens=CONTEXT_TOKENS, vocab_tokens=VOCAB_TOKENS)
