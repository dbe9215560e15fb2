"""Completion of `osd` by bash: the function that `osd --show-completion` prints is run by a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import osd

pytestmark = [
    pytest.mark.usefixtures("plain_environment"),
    pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not there"),
]
_ASK = """
source <("$PROGRAM" --show-completion bash)
ask() {
    COMP_WORDS=("$PROGRAM" "$@") COMP_CWORD=$#
    "$(complete -p osd | sed 's/.*-F \\([^ ]*\\).*/\\1/')" "$PROGRAM"
    echo "${COMPREPLY[@]}"
}
ask ""
ask drafter dis
ask serve --ssl-c
ask serve --port 1 --tar
"""


def test_what_bash_offers(tmp_path: Path) -> None:
    program = tmp_path / "osd"  # wherever the installed one is
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m serving.cli.app "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PROGRAM": str(program), "PYTHONPATH": str(Path(osd.__file__).parents[1])}
    done = subprocess.run(["bash", "-c", _ASK], env=environment, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    commands, command, option, after_a_value = (line.split() for line in done.stdout.splitlines())
    assert {"serve", "bench", "drafter", "doctor", "config"} <= set(commands)
    assert (command, option, after_a_value) == (["distill"], ["--ssl-certfile"], ["--target"])
