"""The `osd` command."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from osd.records.errors import OsdError
from serving.cli import bench, chat, config_show, doctor, drafter, serve, status
from serving.cli.flags.vllm import INSTEAD


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"osd {installed_version('osd')}")
        raise typer.Exit


app = typer.Typer(
    help="Online speculative decoding: serve a model with a drafter that learns from its traffic.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve.serve)
app.command("chat")(chat.chat)
app.command("status")(status.status)
app.command("doctor")(doctor.doctor)
app.add_typer(bench.app, name="bench")
app.add_typer(drafter.app, name="drafter")
app.add_typer(config_show.app, name="config")


@app.callback()
def osd(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """Online speculative decoding: serve a model with a drafter that learns from its traffic."""


_USAGE_ERROR: Any = typer.BadParameter.__base__
"""Typer's click, which newer releases bundle and older ones import as a package."""


def main() -> None:
    """Run a command; an error that the user can fix is printed as one line, without a traceback."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="osd", standalone_mode=False))
    except OsdError as error:
        _fail(str(error))
    except _USAGE_ERROR as error:
        command, option = error.ctx.command_path if error.ctx else "osd", getattr(error, "option_name", "")
        if command == "osd serve" and option in INSTEAD:
            _fail(f"{option}: {INSTEAD[option]}")
        message = error.format_message().rstrip(".")
        if "extra argument" in message and "--served-model-name" in sys.argv:  # vLLM takes several after one option
            message += "; repeat --served-model-name for each name"
        _fail(f"{message}; see `{command} --help`")
    except OSError as error:
        if not error.filename:
            raise
        _fail(f"{error.filename}: {error.strerror}; fix access, or give another path")
    except typer.Abort:
        sys.exit(130)


def _fail(message: str) -> None:
    """Print one line on stderr, without wrapping and without reading it as markup."""
    line = Text.assemble(("error:", "bold red"), " ", " ".join(message.split("\n")))
    Console(stderr=True, soft_wrap=True).print(line)
    sys.exit(2)


if __name__ == "__main__":
    main()
