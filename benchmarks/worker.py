"""Runs a contender in a process of its own: jobs arrive as JSON lines on stdin, answers go to stdout.

python -m benchmarks.worker NAME SETTING_AS_JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from benchmarks.contenders import (
    Contender,
    ContinuousBatching,
    Job,
    MissingPeerError,
    Osd,
    Run,
    Setting,
    Transformers,
)
from benchmarks.llama_peer import LlamaCpp

CONTENDERS: dict[str, Callable[[Setting], Contender]] = {
    "osd plain": lambda setting: Osd(setting, speculate=False),
    "osd speculative": lambda setting: Osd(setting),
    "osd block verification": lambda setting: Osd(setting, accept_rule="block"),
    "osd untrained": lambda setting: Osd(setting, untrained=True),
    "osd plain int4": lambda setting: Osd(replace(setting, dtype="int4"), speculate=False),
    "osd speculative int4": lambda setting: Osd(replace(setting, dtype="int4")),
    "osd model drafter": lambda setting: Osd(setting, kind="model"),
    "generate": lambda setting: Transformers(setting),
    "assisted": lambda setting: Transformers(setting, assistant="model"),
    "prompt lookup": lambda setting: Transformers(setting, assistant="prompt_lookup"),
    "continuous batching": lambda setting: ContinuousBatching(setting),
    "llama.cpp": lambda setting: LlamaCpp(setting),
    "llama.cpp bf16": lambda setting: LlamaCpp(setting, unquantised=True),
}


class Worker:
    """The parent's handle of a contender's process."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", name, json.dumps(setting.as_dict())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.missing = self._answer().get("missing", "")
        """The reason why the contender cannot take part; empty if it can."""

    def run(self, job: Job) -> Run:
        """Run a job in the process.

        Raises:
            MissingPeerError: the contender cannot do it.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asdict(job)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise MissingPeerError(f"its process died with exit code {self._process.wait()}") from None
        answer = self._answer()
        if "missing" in answer:
            raise MissingPeerError(answer["missing"])
        return Run(**answer)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"missing": f"its process died with exit code {self._process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    """Serve jobs until stdin ends."""
    # Libraries may print to stdout, so answers go to a duplicate of it, and stdout itself elsewhere.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    name, setting = sys.argv[1], Setting(**json.loads(sys.argv[2]))
    try:
        contender = CONTENDERS[name](setting)
    except MissingPeerError as error:
        answer({"missing": str(error)})
        return
    answer({})
    for line in sys.stdin:
        try:
            answer(asdict(contender.run(Job(**json.loads(line)))))
        except MissingPeerError as error:
            answer({"missing": str(error)})
        except Exception as error:  # a peer's failure must not affect the other contenders
            answer({"missing": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
