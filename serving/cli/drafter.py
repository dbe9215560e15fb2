"""`osd drafter`: list, check, publish and roll back drafter versions on disk."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from osd.config.settings import Config
from osd.ports.weight_store import WeightStore
from osd.records.drafter_id import drafter_name
from osd.records.errors import OsdError
from serving.cli.distill import distill
from serving.cli.heads import export_head, import_head
from serving.cli.options import ConfigFile, Domain, DrafterKind, StateDir, TargetModel, configure

app = typer.Typer(help="Drafter versions: make, distill, import, export, list, show, publish, roll back.")
app.command("distill")(distill)
app.command("import")(import_head)
app.command("export")(export_head)


@app.command("init")
def init(
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Leave out the drafter that is shipped for the target.")
    ] = False,
    target: TargetModel = None,
    drafter: DrafterKind = None,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Make the first version: shipped with osd, or untrained (kind 'model': the target's first layers)."""
    from osd.assembly.drafter import ensure_first_version, open_store
    from osd.loading.resolve import configured_target

    chosen = {"drafter__pretrained": False} if untrained else {}
    settings = configure(config, state_dir, target__model=target, drafter__kind=drafter, **chosen)
    resolved = configured_target(settings)
    store = open_store(settings, resolved)
    if latest := store.latest():
        raise OsdError(f"there is a drafter already (version {latest.number}); `osd drafter list` shows it")
    ensure_first_version(settings, resolved, store)
    made = store.latest()
    note = made.note if made else ""
    Console().print(f"made version 1 of the {settings.drafter.kind} drafter for {escape(resolved.target_id)}: {note}")


@app.command("list")
def list_versions(
    target: TargetModel = None,
    drafter: DrafterKind = None,
    domain: Domain = "",
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """List every version; * marks the one that is served. Domains with drafters of their own are named below."""
    from osd.io.domains.listed import open_domains

    settings, target_id, store = _open(target, drafter, state_dir, config, domain)
    latest = store.latest()
    table = Table()
    for column in ("version", "parent", "created", "step", "held-out acceptance", "note"):
        table.add_column(column)
    for manifest in store.list():
        mark = "*" if latest and manifest.number == latest.number else " "
        gate = manifest.gate
        figures = f"{gate['candidate']:.3f} (was {gate['serving']:.3f})" if "candidate" in gate else "-"
        note = f"rolled back: {manifest.rolled_back}" if manifest.rolled_back else manifest.note
        created = datetime.fromtimestamp(manifest.created_at_s).astimezone().isoformat(sep=" ", timespec="seconds")
        parent = str(manifest.parent) if manifest.parent else "-"
        table.add_row(f"{mark}{manifest.number}", parent, created, str(manifest.training_step), figures, escape(note))
    Console().print(table)
    if not domain and (others := open_domains(settings, target_id).read()):
        Console().print(f"with a drafter of its own (see --domain): {escape(', '.join(others))}")


@app.command("show")
def show(
    number: Annotated[int, typer.Argument(help="Version to show.")],
    target: TargetModel = None,
    drafter: DrafterKind = None,
    domain: Domain = "",
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Check one version's file against its manifest, and print the manifest."""
    manifest, state = _open(target, drafter, state_dir, config, domain)[2].load(number)
    typer.echo(json.dumps(asdict(manifest), indent=2))
    typer.echo(f"{len(state)} tensors, {sum(t.numel() for t in state.values()):,} numbers, whole")


@app.command("publish")
def publish(
    file: Annotated[
        Path, typer.Argument(help="The weights: a plain safetensors file, or one of `osd drafter distill --out`.")
    ],
    note: Annotated[str, typer.Option(help="Kept in the manifest.")] = "published by hand",
    target: TargetModel = None,
    drafter: DrafterKind = None,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Publish a file as the newest version. A running server swaps it in and watches its acceptance."""
    from osd.drafters.portable import read_weights
    from osd.drafters.weights import check_state

    _, target_id, store = _open(target, drafter, state_dir, config)
    latest = store.latest()
    if latest is None:
        raise OsdError("there is no drafter to compare with; run `osd drafter init` first")
    state = read_weights(file, target_id, latest.kind, latest.config)
    _, serving = store.load(latest.number)
    check_state(state, serving)
    manifest = store.publish(state, kind=latest.kind, config=latest.config, parent=latest.number, note=note)
    Console().print(f"published version {manifest.number}")


@app.command("rollback")
def rollback(
    to: Annotated[int | None, typer.Option(help="Version to go back to; default: the one before.")] = None,
    reason: Annotated[str, typer.Option(help="Kept in the manifest.")] = "rolled back by hand",
    target: TargetModel = None,
    drafter: DrafterKind = None,
    domain: Domain = "",
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Serve an older version again; a running server swaps it in. A domain's version 0 is the base drafter."""
    manifest = _open(target, drafter, state_dir, config, domain)[2].roll_back(to=to, reason=reason)
    Console().print(f"version {manifest.number} serves again" if manifest.number else "the base drafter serves again")


def _open(
    target: str | None, drafter: str | None, state_dir: Path | None, config: Path | None, domain: str = ""
) -> tuple[Config, str, WeightStore]:
    """The configuration, the target's id, and the store of the versions of its drafter, or of a domain's."""
    from osd.assembly.drafter import open_store
    from osd.loading.resolve import configured_target

    settings = configure(config, state_dir, target__model=target, drafter__kind=drafter)
    resolved = configured_target(settings)
    return settings, resolved.target_id, open_store(settings, resolved, drafter_name(settings.drafter.kind, domain))
