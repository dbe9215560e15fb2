"""Texts that exercise pre-tokenizers: digits, line ends, spaces, contractions, code, scripts, special tokens."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

STREAMS = Path(__file__).parents[3] / "shared" / "streams"
_PIECES = (
    "Hello|world|don't|I'LL|we've|'S|'tis|1234567|3.14159|0x1F|$5.00|12:30|1,000,000|A1b2|camelCase|ALLCAPS|snake_case|"
    "__init__|(x)|{}|[]|->|!=|...|a/b|http://x.y/z?q=1&r=2|#tag|@me|def f(a, b=2):\n    return a+b|if (x) {\n\ty++;\n}|"
    "<b>|</s>|<|im_start|>|<|im_end|>|<unk>|<s>|``code``|~|^|\\|\"|'| |  |    |\n|\n\n|\r\n|\t\t|Steps:\n\n1. Mix|\n1.|"
    "\u00bd|\u00b2\u00b3|\u0663\u0664|\u2167|\u65e5\u672c\u8a9e|\u4f60\u597d\uff0c\u4e16\u754c\u3002|"
    "\u041f\u0440\u0438\u0432\u0435\u0442|\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac|\u0939\u093f\u0928\u094d\u0926\u0940|"
    "\u0e44\u0e17\u0e22|\ud55c\uad6d\uc5b4|\u0639\u0631\u0628\u064a|\u00e9|e\u0301|na\u00efve|\ufb01|\U0001f642|"
    "\U0001f469\u200d\U0001f469\u200d\U0001f467|\U0001f1e9\U0001f1ea|\u00a0|\u200b|\u3000|\u2028|\u0085|\u2014|\u201cq\u201d|"
    "\u01c5|\u00df|\u0130|\u00b5|\U0001d518\U0001d52b|\U00010400|\u0301|\ufeff|\x1b[0m|\u1100\u1161"
)


def strange_texts(count: int, seed: int = 0) -> list[str]:
    """Random concatenations of pieces, and random characters (of those that Python's Unicode knows)."""
    generator = random.Random(seed)
    # "|" separates the pieces, but is also part of special tokens, which are protected first.
    pieces = [piece for piece in _PIECES.replace("<|", "<\0").replace("|>", "\0>").split("|") if piece]
    pieces = [piece.replace("\0", "|") for piece in pieces]
    ranges = ((32, 126), (0xA0, 0x2FF), (0x370, 0x6FF), (0x2000, 0x2BFF), (0x3000, 0xD7FF), (0x1F300, 0x1FAFF))
    texts = ["", " ", "\n", "Steps:\n\n1. Mix"]
    while len(texts) < count:
        if generator.random() < 0.1:
            drawn = (chr(generator.randint(*generator.choice(ranges))) for _ in range(20))
            texts.append("".join(char for char in drawn if unicodedata.category(char) != "Cn"))
        else:
            joints = ("", " ", "", "\n")
            words = (generator.choice(pieces) + generator.choice(joints) for _ in range(generator.randint(1, 10)))
            texts.append("".join(words))
    return texts[:count]


def stream_texts(count: int, seed: int = 0) -> list[str]:
    """Prompts and answers of the shared streams; none where they are not available."""
    lines = [line for path in sorted(STREAMS.glob("*.jsonl")) for line in path.read_text("utf-8").split("\n") if line]
    chosen = random.Random(seed).sample(lines, min(count, len(lines)))
    return [text for line in chosen for text in _strings(json.loads(line))][:count]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in items for text in _strings(item)]
