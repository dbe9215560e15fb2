"""What can be seen before anything is started: the state folder, the device, and whole weight files."""

from __future__ import annotations

import ipaddress
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from osd.config.settings import Config
from osd.loading.causal_lm import choose_device
from osd.records.errors import OsdError


def check_machine(config: Config) -> None:
    """See that the state folder can be written, and that the device is there.

    Raises:
        OsdError: one line that says what is wrong and what to do.
    """
    try:
        config.state_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=config.state_dir):
            pass
    except OSError as error:
        raise OsdError(
            f"cannot write to the state folder {config.state_dir}: {error.strerror}; choose another with --state-dir"
        ) from None
    if not config.cluster.address:  # else the engine may be placed on another machine
        choose_device(config.target.device)


def check_weight_files(folder: Path) -> None:
    """See that a model's safetensors files are whole: only their headers are read.

    Raises:
        OsdError: one is cut short or is no safetensors file.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise OsdError(f"{path} is torn ({error}); copy the model again") from None


def exposure_warning(config: Config, address: str) -> str | None:
    """What an operator should know of the address that is listened on: others can reach it, and no key is asked for."""
    if ipaddress.ip_address(address).is_loopback or config.server.api_keys_sha256:
        return None
    return (
        f"listening on {address}: whoever can reach this address may send queries, for no API key is asked for; "
        "set server.api_keys_sha256, or listen on 127.0.0.1 (--host)"
    )
