"""Encodes chat messages so that special tokens spelt in them, such as `<|im_end|>`, stay plain text.

A tokenizer turns the spelling of a special token into that token wherever it appears, so a message could end its own
turn and begin another in the system's name. Here only the special tokens that the chat template writes become tokens.
Before rendering, spellings inside messages are replaced by random stand-ins. In the rendered text, the template's own
special tokens are replaced by secret random names, and the stand-ins by their spellings again. A copy of the tokenizer,
which knows special tokens only by the secret names, then encodes the result.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from osd.text.chat_template import DEFAULT_OPTIONS, ChatOptions, ChatTemplate, Message, Tools

_Tree = dict[str, "_Tree"]
"""A prefix tree: character to the subtree of what may follow it; the key `_END` where a text may end."""
_END = ""


class PlainContent:
    """Encodes conversations whose messages spell special tokens.

    Args:
        tokenizer: a transformers tokenizer.
        template: its chat template.
    """

    def __init__(self, tokenizer: Any, template: ChatTemplate) -> None:
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._template = template
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._added = {index: str(token.content) for index, token in added.items()}
        written, source = _written_by(template), str(getattr(tokenizer, "chat_template", ""))
        control = [
            token
            for token in added.values()
            # Some models' end-of-turn tokens are added tokens that are not marked as special.
            if token.special
            or (token.content in written and re.search(r"\w", token.content) and not _looks_for(source, token.content))
        ]
        self._spellings = sorted((token.content for token in control), key=len, reverse=True)
        self._spelling = any_of(self._spellings)
        # A template may join the parts of a content without a separator, which can complete a spelling.
        beginnings = {spelling[:size] for spelling in self._spellings for size in range(1, len(spelling))}
        self._beginning = re.compile(rf"{any_of(beginnings).pattern}(?=\s*\Z)")
        self._hidden = re.compile(f"{self._spelling.pattern}|{self._beginning.pattern}")
        normalizer = getattr(self._backend, "normalizer", None)
        self._normalize = (
            normalizer.normalize_str if normalizer is not None and any(token.normalized for token in control) else None
        )

    def is_needed(self, messages: Sequence[Message], tools: Tools = (), options: ChatOptions = DEFAULT_OPTIONS) -> bool:
        """Whether a message, tool or variable spells a special token, or one of several parts ends in its start."""
        return any(self._is_found(texts) for one in (*messages, *tools, options.variables) if (texts := _texts(one)))

    def _is_found(self, texts: Sequence[str]) -> bool:
        if len(texts) > 1 and any(map(self._beginning.search, texts)):
            return True
        if any(map(self._spelling.search, texts)):
            return True
        return self._normalize is not None and any(self._spelling.search(self._normalize(text)) for text in texts)

    def encode(
        self, messages: Sequence[Message], tools: Tools = (), options: ChatOptions = DEFAULT_OPTIONS
    ) -> tuple[int, ...]:
        """Token ids of the conversation.

        Raises:
            ValueError: this tokenizer or template cannot keep text and special tokens apart.
        """
        if self._backend is None:
            raise ValueError(
                "a message spells a special token, which this tokenizer cannot read as plain text; leave it out, or "
                "allow it with the setting target.special_tokens_in_messages"
            )
        # A template's exception may quote the messages; secret names must not appear there, so stand-ins differ.
        stand_ins = _Names(self._spellings)

        def hide(one: Mapping[str, Any]) -> dict[str, Any]:
            return _map_texts(one, lambda text: self._hidden.sub(stand_ins.name, text))

        options = replace(options, variables=hide(options.variables))
        try:
            rendered = self._template.render([hide(one) for one in messages], [hide(one) for one in tools], options)
        except Exception as error:
            raise ValueError(stand_ins.undo(str(error))) from error
        names, encode = self._secret
        either = re.compile(f"{stand_ins.pattern.pattern}|{self._spelling.pattern}")
        text = either.sub(lambda found: stand_ins.piece(found) if found["number"] else names.name(found), rendered)
        if stand_ins.are_left_in(text):
            raise ValueError("a message spells a special token in a place where the template changes its letters")
        return encode(text)

    @cached_property
    def _secret(self) -> tuple[_Names, Callable[[str], tuple[int, ...]]]:
        """The secret name of each special token, and an encoder that knows special tokens by those names."""
        names = _Names(self._spellings)
        tokenizer = _renamed(self._backend, names.of)
        ids = {tokenizer.token_to_id(names.of.get(spelling, spelling)): at for at, spelling in self._added.items()}

        def encode(text: str) -> tuple[int, ...]:
            return tuple(ids.get(index, index) for index in tokenizer.encode(text, add_special_tokens=False).ids)

        return names, encode


class _Names:
    """Random names for strings: unguessable, and made of letters and digits only, so that templates keep them."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces, self._nonce = list(pieces), f"osd{secrets.token_hex(16)}"
        self.of = {piece: self._of_number(number) for number, piece in enumerate(pieces)}
        self.pattern = re.compile(f"{self._nonce}x(?P<number>[0-9]+)x")

    def _of_number(self, number: int) -> str:
        return f"{self._nonce}x{number}x"

    def name(self, found: re.Match[str]) -> str:
        """The name of the matched string, which is registered if it is new."""
        if found[0] not in self.of:
            self.of[found[0]] = self._of_number(len(self._pieces))
            self._pieces.append(found[0])
        return self.of[found[0]]

    def piece(self, found: re.Match[str]) -> str:
        """The string that the matched name stands for."""
        return self._pieces[int(found["number"])]

    def undo(self, text: str) -> str:
        """The text with every name replaced by its string."""
        return self.pattern.sub(self.piece, text)

    def are_left_in(self, text: str) -> bool:
        """Whether the template altered a name (its case, for instance), so that `undo` cannot find it."""
        return self._nonce in text.lower()


def any_of(texts: Collection[str]) -> re.Pattern[str]:
    """A pattern that matches the longest of these strings; it matches nothing if there are none.

    The pattern is a prefix tree: with thousands of special tokens that all begin with "<", a flat alternation would
    try each of them at every "<" of a message.
    """
    tree: _Tree = {}
    for text in texts:
        node = tree
        for letter in text:
            node = node.setdefault(letter, {})
        node[_END] = {}
    return re.compile(f"(?:{_branches(tree)})" if tree else "(?!)")


def _branches(tree: _Tree) -> str:
    longer = [re.escape(letter) + _branches(node) for letter, node in tree.items() if letter != _END]
    if _END in tree:
        return f"(?:{'|'.join(longer)})?" if longer else ""
    return longer[0] if len(longer) == 1 else f"(?:{'|'.join(longer)})"


def _looks_for(source: str, spelling: str) -> bool:
    """Whether the template searches messages for this string, as some do to drop earlier reasoning (`</think>`)."""
    quoted = rf"""['"]{re.escape(spelling)}['"]"""
    return re.search(rf"split\(\s*{quoted}|{quoted}\s*(?:not\s+)?in\b", source) is not None


def _texts(message: Message) -> list[str]:
    """Every string in a message, except its role and the types of its parts."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    _map_texts(message, note)
    return found


def _map_texts(message: Message, change: Callable[[str], str]) -> dict[str, Any]:
    def within(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, Mapping):
            return {key: one if key in ("role", "type") else within(one) for key, one in value.items()}
        return [within(one) for one in value] if isinstance(value, list | tuple) else value

    changed: dict[str, Any] = within(message)
    return changed


def _written_by(template: ChatTemplate) -> str:
    """The text that the template itself writes around messages."""
    user, assistant = {"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}
    written = []
    for chat in ([{"role": "system", "content": "x"}, user], [user, assistant, user]):
        try:
            written.append(template.render(template.adapted(chat)))
        except Exception:  # the template rejects this role
            continue
    return "\n".join(written)


def _renamed(backend: Any, names: Mapping[str, str]) -> Tokenizer:
    """A copy of the tokenizer in which some added tokens have other names, which plain text never produces.

    The copy may give added tokens other ids.
    """
    state = json.loads(backend.to_str())
    state |= {"truncation": None, "padding": None, "post_processor": None}
    for added in state["added_tokens"]:
        added["content"] = names.get(added["content"], added["content"])
    model = state["model"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or ()]
    parts = {part for merge in merges for part in merge}
    # A special token that is also an ordinary piece ("!" used for padding, say) stays, since text needs the piece.
    hidden = {old: new for old, new in names.items() if len(old) > 1 and old not in parts}
    if merges:
        model["merges"] = [merge for merge in merges if "".join(merge) not in hidden]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {hidden.get(piece, piece): index for piece, index in vocab.items()}
    else:
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token"):
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    return Tokenizer.from_str(json.dumps(state))
