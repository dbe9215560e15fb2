"""`osd status`."""

from __future__ import annotations

from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from osd.records.errors import OsdError


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
    if response.status_code == 401:
        raise OsdError("the server refused the admin token; see what `osd serve` printed")
    if response.status_code != 200:
        raise OsdError(f"the server does not tell its status (HTTP {response.status_code}): {_reason(response)}")
    for title, rows in _tables(response.json()):
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in rows:
            table.add_row(name, escape(value))
        console.print(table)


def _reason(response: httpx.Response) -> str:
    """The message of an OpenAI-shaped error, or else the response's text."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


def _tables(body: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    processes, restarts = body["processes"], body["restarts"]
    return [
        ("engine", _engine_rows(body["engine"])),
        ("drafter versions", [*_version_rows(body["versions"]), *_domain_rows(body["domains"])]),
        ("trainer", [*_trainer_rows(body["trainer"]), *_spare_rows(body["spare"]), *_stream_rows(body["stream"])]),
        ("resident memory", [(name, f"{size / 1e6:.0f} MB") for name, size in sorted(processes.items())]),
        ("restarts", [(name, str(count)) for name, count in sorted(restarts.items())]),
    ]


def _engine_rows(engine: dict[str, Any] | None) -> list[tuple[str, str]]:
    if engine is None:
        return [("state", "no answer")]
    counters = engine["counters"]
    rounds, proposed = counters["rounds_total"], counters["proposed_total"]
    speculates = engine["speculation_enabled"]
    return [
        ("target", engine["target"]),
        ("computes", engine["computes"]),
        ("context", engine["context"].removeprefix("context ")),
        ("drafter", f"{engine['drafter_kind']} v{engine['drafter_version']}{'' if speculates else ', not in use'}"),
        ("running / waiting", f"{engine['running']} / {engine['waiting']} ({engine['max_slots']} slots)"),
        ("queries", f"{counters['queries_total']:.0f}"),
        ("acceptance rate", f"{counters['accepted_total'] / proposed:.1%} of proposed tokens" if proposed else "-"),
        ("acceptance length", f"{counters['committed_total'] / rounds:.2f} tokens a round" if rounds else "-"),
        ("speculation length", str(engine["speculation_length"]) if speculates else "off"),
        ("utilisation", f"{engine['utilisation']:.0%}"),
    ]


def _domain_rows(domains: dict[str, Any]) -> list[tuple[str, str]]:
    """What serves each domain that has had a drafter of its own."""
    rows = []
    for domain, versions in sorted(domains.items()):
        serves = f"v{versions['confirmed']} of its own" if versions["confirmed"] else "the base drafter"
        trial = f", v{versions['trial']} on trial" if versions["trial"] is not None else ""
        rows.append((f"domain {domain}", f"{serves}{trial}{', pinned' if versions['pinned'] else ''}"))
    return rows


def _version_rows(versions: dict[str, Any] | None) -> list[tuple[str, str]]:
    if versions is None:
        return [("state", "no answer")]
    all_roll_backs, manual = versions["roll_backs"], versions["manual_roll_backs"]
    rows = [("confirmed", f"v{versions['confirmed']}" if versions["confirmed"] is not None else "-")]
    if versions["pinned"]:
        rows.append(("pinned", versions["pinned"]))
    if versions["trial"] is not None:
        rates = f"first tokens accepted {versions['before']:.1%} before, {versions['after']:.1%} now"
        rows.append(("on trial", f"v{versions['trial']} on {', '.join(versions['canaries'])}: {rates}"))
    return [*rows, ("roll-backs", f"{all_roll_backs - manual} automatic, {manual} by hand")]


def _spare_rows(spare: dict[str, Any] | None) -> list[tuple[str, str]]:
    if spare is None:
        return []
    beside = ", ".join(spare["neighbours"]) or "no engine"
    cost = f"trained {spare['training']:.0%} of the time, for which an engine paused {spare['serving_cost']:.1%}"
    return [
        ("device shared with", f"{beside}; the busiest is busy {spare['utilisation']:.0%} of the time"),
        ("last minute", cost),
    ]


def _stream_rows(stream: dict[str, Any] | None) -> list[tuple[str, str]]:
    if stream is None:
        return []
    return [("stream", f"{stream['bytes_per_s'] / 1e6:.2f} MB/s, {stream['record_share']:.0%} of the queries recorded")]


def _trainer_rows(trainer: dict[str, Any] | None) -> list[tuple[str, str]]:
    if trainer is None:
        return [("state", "no answer")]
    state = ("state", ": ".join(filter(None, (trainer["state"].replace("_", " "), trainer["message"]))))
    if trainer["state"] == "off":
        return [state]
    return [
        state,
        ("steps", f"{trainer['steps']} ({trainer['trained_tokens']} tokens)"),
        ("loss", f"{trainer['loss']:.3f}" if trainer["loss"] is not None else "-"),
        ("replay", f"{trainer['replay_records']} outcomes, {trainer['replay_bytes'] / 1e6:.0f} MB"),
        ("published", f"v{trainer['published_version']}" if trainer["published_version"] else "-"),
    ]
