"""`osd serve` with what it cannot serve: one line that says so, before an actor is started; nothing is left running."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import torch

from osd.io.embedded_redis import EmbeddedRedis
from tests.kit.cli_kit import the_error
from tests.kit.saved_models import save_llama

Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny(saved: Path, tmp_path: Path) -> Path:
    """A model folder of the test's own."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture
def refusal(osd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusal]:
    """Serve, with options; the line of the refusal."""
    monkeypatch.setenv("COLUMNS", "60")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = psutil.Process().children(recursive=True)

    def refused(*options: object) -> str:
        status, out, err = osd("serve", "--port", "0", "--state-dir", tmp_path, *options)
        assert all(line.startswith("starting, ") for line in out.splitlines()), out
        assert not [one for one in psutil.Process().children(recursive=True) if one not in before]
        return the_error((status, "", err))

    yield refused
    for number, handler in handlers.items():
        signal.signal(number, handler)


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def without_shard(folder: Path) -> None:
    without_weights(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "does not exist"),
        (without_weights, "no weights"),
        (truncated, "model.safetensors is torn"),
        (without_shard, "model-00001-of-00002.safetensors is missing"),
        (without_tokenizer, "no tokenizer"),
    ],
)
def test_a_damaged_model(refusal: Refusal, tiny: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(tiny)
    error = refusal("--target", tiny)
    assert said in error and str(tiny) in error


def test_a_gguf_that_is_none(refusal: Refusal, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_text("hello")
    assert "is not a GGUF file" in refusal("--target", file)


def test_a_port_in_use(refusal: Refusal, tiny: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in refusal("--target", tiny, "--port", port)


def test_a_foreign_address(refusal: Refusal, tiny: Path) -> None:
    assert "192.0.2.1" in refusal("--target", tiny, "--host", "192.0.2.1")


def test_a_config_with_an_unknown_key(refusal: Refusal, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "osd.toml"
    file.write_text("[server]\nprt = 1\n")
    assert "'server.prt'" in refusal("--target", tiny, "--config", file)


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        pytest.param("--device", "cuda", "'cuda'", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU")),
        ("--device", "abacus", "'abacus'"),
        ("--redis-url", "redis://127.0.0.1:9", "127.0.0.1:9 cannot be reached"),
        ("--redis-url", "nonsense", "Redis URL"),
    ],
)
def test_an_option_that_cannot_be(refusal: Refusal, tiny: Path, option: str, value: str, named: str) -> None:
    assert named in refusal("--target", tiny, option, value)


def test_a_state_folder_that_cannot_be_written(refusal: Refusal, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    state_dir = tmp_path / "file" / "state"
    assert str(state_dir) in refusal("--target", tiny, "--state-dir", state_dir)


@pytest.mark.redis
def test_a_redis_that_refuses_the_password(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, tiny: Path
) -> None:
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"), max_memory_bytes=64 << 20)
    server.start()
    try:
        refusal: Refusal = request.getfixturevalue("refusal")  # which finds the server running
        parts = urlsplit(server.url)
        assert parts.password
        error = refusal("--target", tiny, "--redis-url", server.url.replace(parts.password, "wr0ng"))
    finally:
        server.stop()
    assert "password" in error and "wr0ng" not in error
