"""`osd drafter import` and `export`: EAGLE-3 heads in the files that vLLM, SGLang, SpecForge and speculators share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from osd.records.errors import OsdError
from serving.cli.options import ConfigFile, StateDir, TargetModel, configure


def import_head(
    path: Annotated[Path, typer.Argument(help="Folder with config.json and weights, or its weights file.")],
    target: TargetModel = None,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Make a published EAGLE-3 head version 1 of the target's 'eagle3' drafter, or say why it cannot be."""
    from osd.assembly.drafter import import_head as import_to_store
    from osd.assembly.drafter import open_store
    from osd.loading.resolve import configured_target

    settings = configure(config, state_dir, target__model=target, drafter__kind="eagle3")
    resolved = configured_target(settings)
    manifest = import_to_store(settings, resolved, open_store(settings, resolved), path.expanduser())
    sizes = manifest.config
    reads = ", ".join(map(str, sizes["target_layers"]))
    console = Console()
    console.print(
        f"version {manifest.number} of the eagle3 drafter for {resolved.target_id}: {sizes['vocab_tokens']:,} tokens, "
        f"reads what enters layers {reads} of the target",
        markup=False,
    )
    console.print("serve it with --drafter eagle3 (or drafter.kind = 'eagle3')", markup=False)


def export_head(
    out: Annotated[Path, typer.Argument(help="Folder to write config.json and model.safetensors to.")],
    format: Annotated[
        Literal["eagle3"], typer.Option(help="'eagle3': the layout that vLLM and SGLang load.")
    ] = "eagle3",
    version: Annotated[int | None, typer.Option(help="Version to write; default: the one that is served.")] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="Type of the weights in the file.")
    ] = "bfloat16",
    target: TargetModel = None,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Write an 'eagle3' drafter, adapted or not, for vLLM or SGLang."""
    import torch

    from osd.assembly.drafter import open_store
    from osd.drafters.eagle3.writing import write_head
    from osd.kernels.reference.drafting.eagle3_net import Eagle3Config
    from osd.loading.resolve import configured_target

    settings = configure(config, state_dir, target__model=target, drafter__kind="eagle3")
    resolved = configured_target(settings)
    store = open_store(settings, resolved)
    latest = store.latest()
    if latest is None:
        raise OsdError(f"there is no eagle3 drafter for {resolved.target_id}; `osd drafter import` makes one")
    if out.exists() and not out.is_dir():
        raise OsdError(f"{out} is a file; give a folder")
    manifest, state = store.load(version or latest.number)
    sizes = Eagle3Config(**manifest.config)
    write_head(out, sizes, state, getattr(torch, dtype))
    console = Console()
    console.print(f"version {manifest.number} written to {out}", markup=False)
    norms = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    if found := [name for name in norms if getattr(sizes, name)]:
        console.print(f"it has {', '.join(found)}: vLLM reads this; see that your SGLang does", markup=False)
