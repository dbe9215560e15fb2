"""`osd doctor`: what this machine can do, and what would keep `osd serve` from starting."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import psutil
import typer
from rich.console import Console
from rich.text import Text

from osd.config.settings import Config
from osd.records.errors import OsdError, reason
from serving.cli.options import ConfigFile, StateDir, configure

if TYPE_CHECKING:
    import torch

_STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}
_GIB = 1 << 30


class Finding(NamedTuple):
    """One thing that was looked at."""

    subject: str
    state: Literal["ok", "note", "wrong"]
    """`note` is slower or missing something, `wrong` keeps the service from starting."""
    text: str


def doctor(config: ConfigFile = None, state_dir: StateDir = None) -> None:
    """Tell what this machine can do and what is wrong; the exit status is 1 if `osd serve` could not start."""
    settings = configure(config, state_dir)
    console = Console(soft_wrap=True)
    findings = [finding for look in LOOKS for finding in look(settings)]
    for finding in findings:
        mark = Text(f"{finding.state:5} ", style=_STYLES[finding.state])
        console.print(mark + Text(f"{finding.subject}: {finding.text}"))
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)


def software(_: Config) -> list[Finding]:
    """Versions."""
    found = []
    for name in ("osd", "torch", "transformers", "ray", "numba"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    return [Finding("software", "ok", f"Python {platform.python_version()}, {', '.join(found)}")]


def processor(config: Config) -> list[Finding]:
    """The CPU and its compiled kernels, and the device that the target would be on."""
    from osd.assembly.kernels import num_threads
    from osd.kernels.processor import this_cpu
    from osd.loading.causal_lm import choose_device

    cpu = this_cpu()
    cores = f"{psutil.cpu_count(logical=False) or 1} cores, {psutil.cpu_count() or 1} hardware threads"
    findings = [
        Finding("CPU", "ok", f"{cpu.instructions}, {cores}; the engine takes {num_threads(config.target)} threads")
    ]
    if not cpu.has_kernels:
        findings.append(Finding("kernels", "note", "none for this CPU, so decoding is slower; install numba"))
    try:
        device = choose_device(config.target.device)
    except OsdError as error:
        return [*findings, Finding("device", "wrong", str(error))]
    return [*findings, Finding("device", "ok", f"the target is computed on {_named(device)}")]


def _named(device: torch.device) -> str:
    """A device; of a GPU also its model and its memory."""
    import torch

    if device.type != "cuda":
        return str(device)
    about = torch.cuda.get_device_properties(device)
    return f"{device}: {about.name}, {about.total_memory / _GIB:.1f} GiB"


def memory(config: Config) -> list[Finding]:
    """Memory, and room for the state folder."""
    free = psutil.virtual_memory()
    findings = [Finding("memory", "ok", f"{free.available / _GIB:.1f} of {free.total / _GIB:.1f} GiB are free")]
    from serving.preflight import check_state_folder

    try:
        check_state_folder(config.state_dir)
    except OsdError as error:
        return [*findings, Finding("state folder", "wrong", str(error))]
    room = shutil.disk_usage(config.state_dir).free
    state: Literal["ok", "note"] = "ok" if room > _GIB else "note"
    return [*findings, Finding("state folder", state, f"{config.state_dir}, {room / _GIB:.1f} GiB free")]


def model(config: Config) -> list[Finding]:
    """Whether the target is on this machine."""
    from osd.loading.resolve import check_model_folder, packaged_smollm2
    from serving.preflight import check_weight_files

    name = config.target.model
    path = Path(name).expanduser()
    try:
        if name == "smollm2":
            return [Finding("target", "ok", f"{name}, in {packaged_smollm2()}")]
        if path.is_dir():
            check_model_folder(path)
            check_weight_files(path)
            _check_loads(path, config)
            return [Finding("target", "ok", str(path))]
    except OsdError as error:
        return [Finding("target", "wrong", str(error))]
    if path.is_file():
        return [Finding("target", "ok", f"{path}, which is converted at the first start")]
    if name.endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") != 1:
        return [Finding("target", "wrong", f"{name} does not exist; give a folder, a .gguf file or a hub id")]
    return [Finding("target", "note", f"{name} is fetched from the model hub, unless it has been before")]


def _check_loads(folder: Path, config: Config) -> None:
    """See that transformers knows such a model, and that its weights fit the device.

    Raises:
        OsdError: they do not, or the model needs Python code of its own.
    """
    from transformers import AutoConfig

    from osd.loading.causal_lm import choose_device, choose_dtype
    from osd.loading.fit import check_fits
    from osd.loading.stored import stored_in

    target = config.target
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=target.trust_remote_code)
    except Exception as error:
        raise OsdError(f"transformers cannot read {folder / 'config.json'}: {reason(error)}") from None
    device = choose_device(target.device)
    stored = stored_in(folder, trust_remote_code=target.trust_remote_code)
    check_fits(folder, target.dtype, choose_dtype(target.dtype, device, stored), device)


def network(config: Config) -> list[Finding]:
    """The address to listen on, and the certificate."""
    from serving.preflight import check_certificate, exposure_warning
    from serving.serve import listen

    server = config.server
    try:
        with listen(server.host, server.port) as listener:
            address = str(listener.getsockname()[0])
        warning = exposure_warning(config, address)
        where = f"{server.host}:{server.port} is free"
        findings = [Finding("address", "note" if warning else "ok", warning or where)]
    except OsdError as error:
        findings = [Finding("address", "wrong", str(error))]
    try:
        check_certificate(config)
    except OsdError as error:
        findings.append(Finding("TLS", "wrong", str(error)))
    return findings


def redis(config: Config) -> list[Finding]:
    """A Redis for the outcomes, given or to be started."""
    if not config.outcomes.enabled:
        return [Finding("Redis", "ok", "not needed, since nothing is recorded")]
    from osd.io.find_redis import find_redis_server
    from osd.io.redis_client import connect, explained

    url = config.outcomes.redis_url
    try:
        if not url:
            return [Finding("Redis", "ok", f"{find_redis_server()} will be started")]
        with explained(url):
            connect(url).ping()
        return [Finding("Redis", "ok", "the configured one answers")]
    except OsdError as error:
        return [Finding("Redis", "wrong", str(error))]


def ray(config: Config) -> list[Finding]:
    """Ray, of a cluster or of its own; and the shared memory of its object store."""
    from actors.cluster.join_ray import check_address

    if importlib.util.find_spec("ray") is None:
        return [Finding("Ray", "wrong", "not installed; pip install ray")]
    cluster = config.cluster
    if cluster.address:
        try:
            check_address(cluster.address)
        except OsdError as error:
            return [Finding("Ray", "wrong", str(error))]
        return [Finding("Ray", "ok", f"the cluster at {cluster.address} answers")]
    shared = Path("/dev/shm")
    room = shutil.disk_usage(shared).free if shared.is_dir() else 0
    if room < cluster.object_store_bytes:
        needs = f"{cluster.object_store_bytes >> 20} MiB"
        return [Finding("Ray", "note", f"{shared} has {room >> 20} MiB free of {needs}; Ray will use /tmp, slowly")]
    return [Finding("Ray", "ok", f"a private one will be started; {shared} has {room >> 20} MiB free")]


LOOKS: list[Callable[[Config], list[Finding]]] = [software, processor, memory, model, network, redis, ray]
