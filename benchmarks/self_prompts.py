"""Prompts that the target makes up itself, to distil a general drafter on.

An instruction-tuned model that is given only the beginning of a user's turn goes on with what a user might ask (Magpie,
Xu et al. 2024, arXiv 2406.08464). First words set how it begins, as those of small talk do; whatever an evaluation
prompt also asks is left out.

    python -m benchmarks.self_prompts OUT.jsonl --num-prompts 3000
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.prompts import EvaluationPrompts
from osd.assembly.assemble import open_engine
from osd.config.settings import load_config
from osd.engine.engine import Engine
from osd.records.query import Request, SamplingParams
from trainer.answers import Collector

_FIRST_WORDS = (
    *("", "What is", "What are", "What is your", "What do you", "What was", "Who is", "Who are you", "Where", "When"),
    *("Why", "Why do", "Why are you", "How", "How do you", "How are", "Do you", "Are you", "Can you", "Tell me"),
    *("Tell me about", "I am", "I feel", "I think", "You are", "You", "My", "Is", "Have you", "Let's talk about"),
    *("Did", "Give me", "Explain", "Describe", "Write", "Do you like", "What does", "The", "Who wrote", "It is"),
    *("Will you", "When will you", "You should", "You sound", "I do not", "I want to", "I have", "What kind of"),
    *("Tell me a joke", "What is the capital of", "What is the difference between", "What is a", "What are the"),
    *("Which", "can you write", "write a", "make a", "can you explain", "can you help me", "how can I", "show me"),
    *("build a", "Does", "Could you", "Would you", "Should I", "Is it", "Is there", "Are there", "Was", "People"),
    *("Robots", "Who invented", "Who was the", "Where is", "When was", "How many", "How much", "How old", "Why is"),
    *("If", "A"),
)
_MARK = "here-the-user-speaks"
_MIN_CHARS, _MAX_CHARS, _MAX_TOKENS = 8, 300, 48


def main(
    out: Path,
    num_prompts: Annotated[int, typer.Option(help="how many to make up; fewer are kept")] = 3000,
    target: str = "smollm2",
    threads: int = 2,
) -> None:
    """Make them up and write them."""
    flags = {
        "target": {"model": target, "threads": threads},
        "speculation": {"enabled": False},
        "engine": {"max_slots": 64, "max_waiting": num_prompts},
    }
    evaluated = EvaluationPrompts()
    engine = open_engine(load_config(flags=flags), recorder=Collector())
    kept = [text for text in dict.fromkeys(_made_up(engine, num_prompts)) if text not in evaluated]
    lines = [json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in kept]
    out.write_text("".join(lines))
    print(f"{len(kept)} prompts, {num_prompts - len(kept)} left out: without an end, too short or asked before")


def _made_up(engine: Engine, num_prompts: int) -> list[str]:
    """Those that came to an end and are of a prompt's length."""
    codec = engine.codec
    chat = codec.encode_chat([{"role": "user", "content": _MARK}])
    turn, _ = str(codec.tokenizer.decode(list(chat))).split(_MARK)
    texts = {}
    for number in range(num_prompts):
        request_id, first = str(number), _FIRST_WORDS[number % len(_FIRST_WORDS)]
        texts[request_id] = first
        params = SamplingParams(temperature=1.0, top_p=0.95, seed=number, max_tokens=_MAX_TOKENS)
        engine.submit(Request(request_id=request_id, prompt_ids=codec.encode_text(turn + first), params=params))
    ended = []
    while engine.has_work:
        for delta in engine.step():
            texts[delta.request_id] += delta.text
            if delta.finish_reason == "stop":
                ended.append(texts[delta.request_id].strip())
    return [text for text in ended if _MIN_CHARS <= len(text) <= _MAX_CHARS]


if __name__ == "__main__":
    typer.run(main)
