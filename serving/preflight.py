"""Checks before anything is started: the state folder, the device, and complete weight files."""

from __future__ import annotations

import ipaddress
import ssl
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from osd.config.settings import Config
from osd.io.guards.store_health import check_store
from osd.loading.causal_lm import choose_device
from osd.records.errors import OsdError


def check_machine(config: Config) -> None:
    """Check that the state folder is writable and the device exists.

    Raises:
        OsdError: one line that says what is wrong and what to do.
    """
    check_state_folder(config.state_dir)
    check_store(config)
    choose_device(config.target.device)


def check_state_folder(folder: Path) -> None:
    """Check that the state folder exists, or can be made, and is writable.

    Raises:
        OsdError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OsdError(
            f"cannot write to the state folder {folder}: {error.strerror}; choose another with --state-dir"
        ) from None


def check_certificate(config: Config) -> None:
    """See that the TLS certificate and its key can be read and belong together.

    Raises:
        OsdError: a file cannot be read, or they do not belong together.
    """
    server = config.server
    if not server.ssl_certfile:
        return
    try:
        # A key with a passphrase would have OpenSSL ask for it on the terminal.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            server.ssl_certfile, server.ssl_keyfile or None, password=""
        )
    except (OSError, ValueError) as error:
        files = " and ".join(filter(None, (server.ssl_certfile, server.ssl_keyfile)))
        raise OsdError(
            f"cannot serve TLS with {files}: {error}; give --ssl-certfile a PEM certificate and --ssl-keyfile its key, "
            "which has no passphrase"
        ) from None


def check_weight_files(folder: Path) -> None:
    """Check that a model's safetensors files are complete; reads only their headers.

    Raises:
        OsdError: a file is truncated or not safetensors.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise OsdError(f"{path} is torn ({error}); copy the model again") from None


def exposure_warning(config: Config, address: str) -> str | None:
    """A warning if other machines can reach the server's address and no API key is required; else None.

    Args:
        config: names the keys.
        address: that the server listens on, or a name of it.
    """
    if _is_loopback(address) or config.server.api_keys_sha256:
        return None
    return (
        f"listening on {address}: whoever can reach this address may send queries, for no API key is asked for; "
        "set server.api_keys_sha256, or listen on 127.0.0.1 (--host)"
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name
        return address == "localhost"
