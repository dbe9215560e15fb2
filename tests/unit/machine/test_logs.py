"""The log: one file of all processes, whole lines, bounded, with the request's id."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from osd.config.settings import load_config
from osd.machine.logs import BoundedFile, JsonLines, TextLines, join_logs, request_id, start_logs

CHILD = """
import logging, sys
from osd.machine.logs import join_logs
join_logs(sys.argv[1])
for number in range(200):
    logging.getLogger("actors.test").info("%s says %d %s", sys.argv[1], number, "x" * 300)
logging.getLogger("httpx").info("a library's chatter")
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOG_OF_OSD_SERVICE", "")
    monkeypatch.delenv("LOG_OF_OSD_SERVICE")
    root = logging.getLogger()
    before, levels = (
        list(root.handlers),
        {name: logging.getLogger(name).level for name in ("osd", "actors", "trainer", "serving")},
    )
    yield
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def started(folder: Path, *, level: str = "info", lines: str = "text") -> Iterator[Path]:
    path = folder / "logs" / "osd.log"
    with start_logs(path, "server", level=level, lines=lines, max_bytes=1 << 30):
        yield path


def test_processes_share_a_file_without_mixing_lines(tmp_path: Path) -> None:
    with started(tmp_path, lines="json") as path:
        children = [subprocess.Popen([sys.executable, "-c", CHILD, f"engine-{number}"]) for number in range(3)]
        logging.getLogger("serving.test").info("from here")
        assert [child.wait(60) for child in children] == [0, 0, 0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 601
    for number in range(3):
        said = [line["message"].split()[2] for line in lines if line["process"] == f"engine-{number}"]
        assert said == [str(at) for at in range(200)]
    assert {line["logger"] for line in lines} == {"actors.test", "serving.test"}


def test_a_file_that_is_full_is_renamed_once(tmp_path: Path) -> None:
    path = tmp_path / "osd.log"
    handlers = [BoundedFile(path, 10_000) for _ in range(2)]
    for number in range(300):
        record = logging.LogRecord("osd", logging.INFO, "", 0, f"{number} " + "x" * 100, None, None)
        handlers[number % 2].emit(record)
    for handler in handlers:
        handler.close()
    assert path.stat().st_size < 11_000 and (tmp_path / "osd.log.1").stat().st_size < 11_000
    newest = [
        int(line.split()[0]) for name in ("osd.log.1", "osd.log") for line in (tmp_path / name).read_text().splitlines()
    ]
    assert newest == list(range(newest[0], 300))


def test_a_record_has_its_requests_id_and_its_exception() -> None:
    token = request_id.set("req-7")
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("serving.x", logging.ERROR, "", 0, "failed %s", ("twice",), sys.exc_info())
    as_json = json.loads(JsonLines("server").format(record))
    text = TextLines("server").format(record)
    request_id.reset(token)
    assert (as_json["message"], as_json["request_id"], as_json["level"]) == ("failed twice", "req-7", "error")
    assert "ValueError: broken" in as_json["exception"]
    # Text has the same fields and no others: what no JSON line holds, no line of text does.
    head = f"{as_json['at']} ERROR   server serving.x [req-7]: failed twice"
    assert text == f"{head}\n{as_json['exception']}"


def test_the_level_is_that_of_the_settings_and_nothing_is_left_behind(tmp_path: Path) -> None:
    before = list(logging.getLogger().handlers)
    with started(tmp_path, level="error") as path:
        logging.getLogger("osd.x").warning("not this")
        logging.getLogger("osd.x").error("but this")
    assert [line.rpartition(": ")[2] for line in path.read_text().splitlines()] == ["but this"]
    assert logging.getLogger().handlers == before
    load_config()  # a variable of ours that is no setting would be refused


def test_a_process_that_nobody_configured_logs_as_before(tmp_path: Path) -> None:
    before = list(logging.getLogger().handlers)
    join_logs("engine")
    assert logging.getLogger().handlers == before


def test_whoever_logs_is_not_disturbed_by_a_full_disk(tmp_path: Path) -> None:
    """Neither where a record cannot be written, nor where the file was replaced meanwhile, nor at the end."""
    path = tmp_path / "osd.log"
    path.symlink_to("/dev/full")
    handler = BoundedFile(path, 1 << 20)
    record = logging.LogRecord("osd", logging.INFO, __file__, 1, "a line", None, None)
    handler.emit(record)
    path.unlink()
    path.symlink_to("/dev/null")
    handler.emit(record)
    path.unlink()
    path.symlink_to("/dev/full")
    handler.emit(record)
    handler.close()


def test_whoever_logs_is_not_disturbed_by_a_folder_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "osd.log"
    handler = BoundedFile(path, 1 << 20)
    record = logging.LogRecord("osd", logging.INFO, __file__, 1, "a line", None, None)
    handler.emit(record)
    path.unlink()
    path.parent.rmdir()
    path.parent.touch()
    handler.emit(record)
    path.parent.unlink()
    path.parent.mkdir()
    handler.emit(record)
    assert "a line" in path.read_text(), "it is written to again once that is possible"
    handler.close()
