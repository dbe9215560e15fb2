"""`osd serve`."""

from __future__ import annotations

import time
from typing import Annotated

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from serving.cli.options import ConfigFile, DrafterKind, StateDir, TargetModel, configure, setting

_LINE_S = 10.0
"""Without a terminal: seconds between two lines about the same stage."""


def serve(
    target: TargetModel = None,
    dtype: Annotated[str | None, setting("target", "dtype", "--dtype")] = None,
    device: Annotated[str | None, setting("target", "device", "--device")] = None,
    threads: Annotated[int | None, setting("target", "threads", "--threads")] = None,
    max_context_tokens: Annotated[int | None, setting("target", "max_context_tokens", "--max-context-tokens")] = None,
    host: Annotated[str | None, setting("server", "host", "--host")] = None,
    port: Annotated[int | None, setting("server", "port", "--port")] = None,
    root_path: Annotated[str | None, setting("server", "root_path", "--root-path")] = None,
    ssl_certfile: Annotated[str | None, setting("server", "ssl_certfile", "--ssl-certfile")] = None,
    ssl_keyfile: Annotated[str | None, setting("server", "ssl_keyfile", "--ssl-keyfile")] = None,
    max_slots: Annotated[int | None, setting("engine", "max_slots", "--max-slots")] = None,
    max_waiting: Annotated[int | None, setting("engine", "max_waiting", "--max-waiting")] = None,
    prefix_caching: Annotated[
        bool | None, setting("engine", "prefix_caching", "--prefix-caching/--no-prefix-caching")
    ] = None,
    drafter: DrafterKind = None,
    drafter_model: Annotated[str | None, setting("drafter", "model", "--drafter-model")] = None,
    speculate: Annotated[bool | None, setting("speculation", "enabled", "--speculate/--no-speculate")] = None,
    speculation_length: Annotated[int | None, setting("speculation", "fixed_length", "--speculation-length")] = None,
    train: Annotated[bool | None, setting("trainer", "enabled", "--train/--no-train")] = None,
    loss: Annotated[str | None, setting("trainer", "loss", "--loss")] = None,
    optimizer: Annotated[str | None, setting("trainer", "optimizer", "--optimizer")] = None,
    learning_rate: Annotated[float | None, setting("trainer", "learning_rate", "--learning-rate")] = None,
    max_utilisation: Annotated[float | None, setting("trainer", "max_utilisation", "--max-utilisation")] = None,
    redis_url: Annotated[str | None, setting("outcomes", "redis_url", "--redis-url")] = None,
    ray_address: Annotated[str | None, setting("cluster", "address", "--ray-address")] = None,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Serve a model over an OpenAI-compatible API, with a drafter that learns from its traffic."""
    settings = configure(
        config,
        state_dir,
        target__model=target,
        target__dtype=dtype,
        target__device=device,
        target__threads=threads,
        target__max_context_tokens=max_context_tokens,
        server__host=host,
        server__port=port,
        server__root_path=root_path,
        server__ssl_certfile=ssl_certfile,
        server__ssl_keyfile=ssl_keyfile,
        engine__max_slots=max_slots,
        engine__max_waiting=max_waiting,
        engine__prefix_caching=prefix_caching,
        drafter__kind=drafter,
        drafter__model=drafter_model,
        speculation__enabled=speculate,
        speculation__fixed_length=speculation_length,
        trainer__enabled=train,
        trainer__loss=loss,
        trainer__optimizer=optimizer,
        trainer__learning_rate=learning_rate,
        trainer__max_utilisation=max_utilisation,
        outcomes__redis_url=redis_url,
        cluster__address=ray_address,
    )
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

        run_server(settings, on_progress=on_progress, on_ready=on_ready, on_news=say)


def _greet(console: Console, serving: object) -> None:
    from serving.serve import Serving

    assert isinstance(serving, Serving)
    token = serving.admin_token or "the one you set"
    model, url = escape(serving.model), escape(serving.url)
    console.print(f"[bold]osd[/] serves [bold]{model}[/] on [bold]{url}/v1[/]  (Ctrl-C stops it)", soft_wrap=True)
    console.print(escape(serving.computes), highlight=False, soft_wrap=True)
    console.print(f"drafter: {serving.drafter}", highlight=False, soft_wrap=True)
    console.print(f"admin page: {url}/admin  token: {token}", highlight=False, soft_wrap=True)
    console.print(f"try: osd chat --url {url}", highlight=False, soft_wrap=True)
