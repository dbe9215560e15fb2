"""The `osd` command."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from osd.types import OsdError
from serving.cli import chat, config_show, drafter, serve, status

app = typer.Typer(
    help="Online speculative decoding: serve a model with a drafter that learns from its traffic.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve.serve)
app.command("chat")(chat.chat)
app.command("status")(status.status)
app.add_typer(drafter.app, name="drafter")
app.add_typer(config_show.app, name="config")


def main() -> None:
    """Run a command; an error that the user can mend is one line, not a traceback."""
    try:
        app()
    except OsdError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {error}", highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
