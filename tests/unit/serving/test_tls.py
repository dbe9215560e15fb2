"""HTTPS, with a certificate made for the test."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest

from osd.config.settings import ConfigError, load_config
from osd.records.errors import OsdError
from serving.app import create_app
from serving.preflight import check_certificate
from tests.kit.certificates import make_certificate, needs_openssl
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_server import serve


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate of 127.0.0.1, its key)."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@needs_openssl
def test_a_client_that_trusts_the_certificate_is_served(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    app = create_app(load_config(), FakeEngineClient(), FakeCodec(), admin_token_sha256="")
    with serve(app, ssl_certfile=cert, ssl_keyfile=key) as url:
        assert url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(f"{url}/v1/models", verify=trusting).json()["object"] == "list"
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"{url}/health")


@needs_openssl
def test_a_certificate_is_checked_before_anything_starts(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    both = tmp_path / "both.pem"
    both.write_text(cert.read_text() + key.read_text())
    for server in ({}, {"ssl_certfile": str(cert), "ssl_keyfile": str(key)}, {"ssl_certfile": str(both)}):
        check_certificate(load_config(flags={"server": server}))
    for server in (
        {"ssl_certfile": str(cert)},
        {"ssl_certfile": str(key), "ssl_keyfile": str(key)},
        {"ssl_certfile": "/nowhere.pem", "ssl_keyfile": str(key)},
    ):
        with pytest.raises(OsdError, match="--ssl-certfile") as refused:
            check_certificate(load_config(flags={"server": server}))
        assert server["ssl_certfile"] in str(refused.value)


def test_a_key_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="ssl_keyfile needs ssl_certfile"):
        load_config(flags={"server": {"ssl_keyfile": "key.pem"}})
