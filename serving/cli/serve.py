"""`osd serve`."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from osd.config.settings import Config
from serving.cli.flags.settings import with_settings

_LINE_S = 10.0
"""Without a terminal: seconds between two lines about the same stage."""


def _serve(settings: Config) -> None:
    """Serve a model over an OpenAI-compatible API, with a drafter that learns from its traffic.

    Every setting that `osd config show` prints is an option, too: `--section.field VALUE`. MODEL is the target.
    """
    from serving.serve import Serving, run_server  # imports torch, which --help does not need

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=1.0)

        told, told_s = "", 0.0

        def on_progress(stage: str, share: float) -> None:
            nonlocal told, told_s
            progress.update(task, description=stage, completed=share)
            now_s = time.monotonic()
            if not console.is_terminal and (stage != told or now_s - told_s >= _LINE_S):
                told, told_s = stage, now_s
                say(f"starting, {share:.0%}: {stage}")

        def on_ready(serving: Serving) -> None:
            progress.stop()
            _greet(console, serving)

        def say(line: str) -> None:
            console.print(escape(line), highlight=False, soft_wrap=True)

        if settings.cluster.address:
            from serving.deploy import deploy_to_cluster

            on_ready(deploy_to_cluster(settings, on_progress))
        else:
            run_server(settings, on_progress=on_progress, on_ready=on_ready, on_news=say)


serve = with_settings(_serve)


def _greet(console: Console, serving: object) -> None:
    from serving.serve import Serving

    assert isinstance(serving, Serving)
    token = serving.admin_token or "the one you set"
    model, url = escape(serving.model), escape(serving.url)
    console.print(f"[bold]osd[/] serves [bold]{model}[/] on [bold]{url}/v1[/]  ({serving.stop})", soft_wrap=True)
    console.print(escape(serving.computes), highlight=False, soft_wrap=True)
    if serving.context:
        console.print(escape(serving.context), highlight=False, soft_wrap=True)
    console.print(f"drafter: {serving.drafter}", highlight=False, soft_wrap=True)
    console.print(f"admin page: {url}/admin  token: {token}", highlight=False, soft_wrap=True)
    console.print(f"try: osd chat --url {url}", highlight=False, soft_wrap=True)
