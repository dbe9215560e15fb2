"""`osd drafter distill`: train a drafter offline, on the target's own answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from osd.records.errors import OsdError
from serving.cli.options import ConfigFile, DrafterKind, StateDir, TargetModel, configure

if TYPE_CHECKING:
    from osd.config.settings import Config
    from osd.loading.resolve import ResolvedTarget
    from osd.records.version import WeightManifest


def distill(
    prompts: Annotated[Path, typer.Option(help='JSONL of {"prompt": …} or {"messages": […]} lines.')],
    answers: Annotated[int, typer.Option(help="Answers to make; 0: one a prompt. Further ones are sampled.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 128,
    rows: Annotated[int, typer.Option(help="Answers made at once.")] = 64,
    passes: Annotated[float, typer.Option(help="How often each answer is trained on.")] = 4.0,
    out: Annotated[Path | None, typer.Option(help="Safetensors file to write the result to, too.")] = None,
    target: TargetModel = None,
    drafter: DrafterKind = None,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Train on text that the target generates for your prompts; resumable, and published only through the gate."""
    from osd.loading.resolve import configured_target
    from osd.text.codec import TextCodec
    from osd.text.prompt_file import read_prompts
    from trainer.offline.distill import DistillProgress
    from trainer.offline.distill import distill as run

    if max_tokens < 1 or passes <= 0 or answers < 0 or rows < 1:
        raise OsdError("--max-tokens and --rows must be at least 1, --passes above 0 and --answers at least 0")
    settings = configure(config, state_dir, target__model=target, drafter__kind=drafter, engine__max_slots=rows)
    chats = read_prompts(prompts)
    resolved = configured_target(settings)
    codec = TextCodec.configured(resolved.folder, resolved.target_id, settings.target)
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        making = bar.add_task("answers", total=answers or len(chats))
        training = bar.add_task("training", total=1.0)

        def show(now: DistillProgress) -> None:
            bar.update(making, completed=now.answers)
            if now.loss is not None:
                held_out = " ".join(f"{share:.3f}" for share in now.held_out_acceptance) or "-"
                label = f"{now.trained_tokens:,} tokens, loss {now.loss:.3f}, held-out acceptance {held_out}"
                bar.update(training, completed=now.trained_share, description=label)
                if not console.is_terminal and now.steps % settings.trainer.gate_every_steps == 0:
                    console.print(f"step {now.steps}, {now.trained_share:.1%}: {label}")  # no progress bar in a log

        manifest = run(
            settings,
            resolved,
            [codec.encode_chat(chat) for chat in chats],
            num_answers=answers or len(chats),
            max_tokens=max_tokens,
            passes=passes,
            on_progress=show,
            on_event=lambda event: console.print(event.message, markup=False),
        )
    console.print(f"version {manifest.number} of the {manifest.kind} drafter serves from now on")
    if out is not None:
        card = {
            "prompts": prompts.name,
            "prompts_sha256": hashlib.sha256(prompts.read_bytes()).hexdigest(),
            "answers": str(answers or len(chats)),
            "max_tokens": str(max_tokens),
            "passes": str(passes),
        }
        _write(out, settings, resolved, manifest, card)
        console.print(f"written to {out}")


def _write(
    out: Path, settings: Config, resolved: ResolvedTarget, manifest: WeightManifest, card: Mapping[str, str]
) -> None:
    """A published version as one file, with what it was made from."""
    from osd.assembly.drafter import open_store
    from osd.drafters.portable import write_drafter

    _, state = open_store(settings, resolved).load(manifest.number)
    write_drafter(out, resolved.target_id, manifest, state, card)
