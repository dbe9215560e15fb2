"""Compiles constraints for one tokenizer, and caches them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from osd.grammar.row_grammar import RowGrammar, fill_mask, num_words
from osd.grammar.source import grammar_of, limits, refused
from osd.grammar.thinking import ThinkingConstraint
from osd.ports.constraint import RowConstraint
from osd.records.asked.constraint import ConstraintSpec
from osd.records.query import Request
from osd.text.codec import TextCodec

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MAX_CACHED = 32
_MAX_SPELT = 1024


class GrammarCompiler:
    """Compiles constraints; may be used on several threads, but not on the engine's, since compiling takes time.

    Args:
        codec: the target's tokenizer.
        eos_ids: tokens that end an answer, which are allowed where the grammar is complete.
    """

    def __init__(self, codec: TextCodec, eos_ids: Collection[int]) -> None:
        self._codec, self._eos_ids = codec, sorted(eos_ids)
        self._compiled: OrderedDict[tuple[str, str, str], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._spell = lru_cache(_MAX_SPELT)(self._find_tokens)

    def of_query(self, request: Request) -> RowConstraint | None:
        """What constrains a query's answer; None: nothing.

        Raises:
            ConstraintRefusedError: see `compile`.
        """
        inner = None if request.constraint is None else self.compile(request.constraint)
        if request.thinking is None:
            return inner
        return ThinkingConstraint(request.thinking, self._codec.vocab_tokens, inner)

    def compile(self, spec: ConstraintSpec) -> RowGrammar:
        """The constraint of one query, at its beginning.

        Raises:
            ConstraintRefusedError: the grammar is wrong or too large, or this model cannot be constrained.
        """
        key = (spec.kind, spec.text, spec.reasoning)
        with self._lock:
            matcher = self._compiled.get(key)
            if matcher is not None:
                self._compiled.move_to_end(key)
        if matcher is None:
            matcher = self._compile(spec)
            with self._lock:
                self._compiled[key] = matcher
                while len(self._compiled) > _MAX_CACHED:
                    self._compiled.popitem(last=False)
        return RowGrammar(matcher.deep_copy(), self._codec.vocab_tokens, frozenset(self._eos_ids), self._spell)

    def _compile(self, spec: ConstraintSpec) -> LLMatcher:
        from llguidance import LLMatcher

        if self._bytes_by_id is None:
            raise refused(spec, f"the tokens of {self._codec.model_id} stand for no fixed bytes, so no grammar applies")
        if not self._eos_ids:
            raise refused(spec, f"{self._codec.model_id} has no token that ends an answer, so no grammar applies")
        matcher = LLMatcher(self._tokenizer, grammar_of(spec), log_level=0, limits=limits())
        # The first mask can take much longer than later ones. It also shows grammars that no text satisfies.
        first_W = np.zeros(num_words(self._codec.vocab_tokens), np.uint32)
        if not matcher.is_error():
            fill_mask(matcher, first_W)
        if matcher.is_error():
            raise refused(spec, matcher.get_error())
        self._check_rollback(spec, matcher.deep_copy(), first_W)
        return matcher

    def _check_rollback(self, spec: ConstraintSpec, matcher: LLMatcher, first_W: np.ndarray) -> None:
        """Refuse what cannot be rolled back after proposed tokens (`stop` and `max_tokens` of Lark's rules)."""
        allowed = np.flatnonzero(np.unpackbits(first_W.view(np.uint8), bitorder="little"))
        first = next((int(token) for token in allowed if token not in self._eos_ids), None)
        if first is not None and not (matcher.consume_token(first) and matcher.rollback(1)):
            raise refused(spec, matcher.get_error())

    def _find_tokens(self, text: bytes) -> Sequence[int]:
        """The tokens of a text that a grammar prescribes, up to a character that is not whole.

        None where the tokenizer writes something else for a text's beginning, such as a space before it.
        """
        whole = text.decode(errors="ignore")
        ids = self._codec.encode_text(whole, add_special_tokens=False)
        return ids if b"".join(map(self._codec.token_bytes, ids)) == whole.encode() else ()

    @cached_property
    def _bytes_by_id(self) -> Sequence[bytes] | None:
        return self._codec.bytes_by_id()

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        assert self._bytes_by_id is not None
        vocabulary = _Vocabulary(self._bytes_by_id, self._codec.special_token_ids(), self._eos_ids[0])
        return LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=len(self._bytes_by_id), eos_token=self._eos_ids)


class _Vocabulary:
    """What llguidance's `TokenizerWrapper` reads of a tokenizer.

    Args:
        tokens: the bytes of each token; a special token's spelling.
        special_ids: tokens that a grammar can only name as such.
        eos_id: a token that ends an answer.
    """

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special_ids: Collection[int], eos_id: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = list(tokens), sorted(special_ids), eos_id

    def __call__(self, text: bytes | str) -> list[int]:
        raise NotImplementedError("grammars here never force a way of dividing text into tokens")
