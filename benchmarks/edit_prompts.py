"""Edits: texts to be written again with one word changed, so that most of an answer is in its prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from osd.text.prompt_file import Messages

_NEW_WORDS = ("Marlow", "Quill", "Tansy", "Brisk", "Ostara")
_LEAST_LETTERS = 4


def edit_prompts(texts: Iterable[str]) -> list[Messages]:
    """One prompt per text that has a word of four letters: its most frequent one is to be replaced."""
    prompts: list[Messages] = []
    for text in texts:
        words = Counter(word for word in re.findall(r"[A-Za-z]+", text) if len(word) >= _LEAST_LETTERS)
        if not words:
            continue
        [(word, _)] = words.most_common(1)
        new = _NEW_WORDS[len(prompts) % len(_NEW_WORDS)]
        asked = f'Write this text again with "{word}" changed to "{new}". Answer with the new text only.\n\n{text}'
        prompts.append([{"role": "user", "content": asked}])
    return prompts
