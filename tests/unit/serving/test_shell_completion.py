"""Completion of `osd` by shells.

A real bash runs the function that `osd --show-completion` prints. Few machines have zsh or fish, so the test asks what
their functions ask.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import osd

pytestmark = pytest.mark.usefixtures("plain_environment")
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


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With PROGRAM, which is run as the installed `osd`."""
    program = tmp_path / "osd"  # wherever the installed one is
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m serving.cli.app "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PROGRAM": str(program), "PYTHONPATH": str(Path(osd.__file__).parents[1])}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not there")
def test_what_bash_offers(environment: dict[str, str]) -> None:
    done = subprocess.run(["bash", "-c", _ASK], env=environment, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    commands, command, option, after_a_value = (line.split() for line in done.stdout.splitlines())
    assert {"serve", "bench", "drafter", "doctor", "config"} <= set(commands)
    assert (command, option, after_a_value) == (["distill"], ["--ssl-certfile"], ["--target"])


@pytest.mark.parametrize(
    ("shell", "variables", "offered"),
    [
        ("zsh", {}, '"--ssl-certfile":'),
        ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}, "--ssl-certfile\t"),
    ],
)
def test_what_other_shells_are_offered(
    environment: dict[str, str], shell: str, variables: dict[str, str], offered: str
) -> None:
    def run(arguments: list[str], more: dict[str, str]) -> str:
        program = [environment["PROGRAM"], *arguments]
        done = subprocess.run(program, env=environment | more, capture_output=True, text=True, timeout=240)
        assert done.stderr == ""
        return done.stdout

    asked = {"_OSD_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "osd serve --ssl-c", **variables}
    script = run(["--show-completion", shell], {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert all(name in script for name in asked), "the function sets what it is asked by"
    assert offered in run([], asked)
