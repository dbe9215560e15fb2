"""`osd status`."""

from __future__ import annotations

from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from osd.types import OsdError


def status(
    url: Annotated[str, typer.Option(help="Where osd serves.")] = "http://127.0.0.1:8000",
    token: Annotated[
        str, typer.Option(help="Admin token; without it, only health is shown.", envvar="OSD_ADMIN_TOKEN")
    ] = "",
) -> None:
    """Show what a running server is doing."""
    console = Console()
    try:
        with httpx.Client(base_url=url, timeout=20) as client:
            ready = client.get("/ready").status_code == 200
            console.print(f"{url}: {'ready' if ready else 'not ready'}", markup=False)
            if not token:
                console.print("give --token (or OSD_ADMIN_TOKEN) to see more")
                return
            response = client.get("/admin/api/status", headers={"Authorization": f"Bearer {token}"})
    except (httpx.TransportError, httpx.InvalidURL):
        raise OsdError(f"no server answers at {url}; start one with `osd serve`, or give --url") from None
    if response.status_code != 200:
        raise OsdError(
            f"the server refused the admin token (HTTP {response.status_code}); see what `osd serve` printed"
        )
    for title, rows in _tables(response.json()):
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in rows:
            table.add_row(name, escape(value))
        console.print(table)


def _tables(body: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    tables = []
    if engine := body.get("engine"):
        counters = engine["counters"]
        rounds, proposed = counters["rounds_total"], counters["proposed_total"]
        rows = [
            ("target", engine["target"]),
            ("drafter", f"{engine['drafter_kind']} v{engine['drafter_version']}"),
            ("running / waiting", f"{engine['running']} / {engine['waiting']} ({engine['max_slots']} slots)"),
            ("queries", f"{counters['queries_total']:.0f}"),
            ("acceptance rate", f"{counters['accepted_total'] / proposed:.3f}" if proposed else "-"),
            ("acceptance length", f"{counters['committed_total'] / rounds:.2f}" if rounds else "-"),
            ("speculation length", str(engine["speculation_length"])),
            ("utilisation", f"{engine['utilisation']:.0%}"),
        ]
        tables.append(("engine", rows))
    if trainer := body.get("trainer"):
        loss = f"{trainer['loss']:.3f}" if trainer["loss"] is not None else "-"
        rows = [
            ("state", f"{trainer['state']} {trainer['message']}".strip()),
            ("steps", f"{trainer['steps']} ({trainer['trained_tokens']} tokens)"),
            ("loss", loss),
            ("replay", f"{trainer['replay_records']} outcomes, {trainer['replay_bytes'] / 2**20:.0f} MiB"),
            ("published", f"v{trainer['published_version']}"),
        ]
        tables.append(("trainer", rows))
    processes = [(name, f"{size / 2**20:.0f} MiB") for name, size in sorted(body.get("processes", {}).items())]
    tables.append(("resident memory", processes))
    return tables
