"""The one log of all replicas, as the supervisor keeps it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)

from actors.cluster.replica_logs import LogOfReplicas
from osd.config.settings import load_config
from osd.machine.logs import JsonLines, TextLines


def test_lines_of_replicas_and_of_the_keeper_are_in_one_file(tmp_path: Path) -> None:
    kept = LogOfReplicas(load_config(flags={"state_dir": tmp_path}))
    (own,) = kept.handlers()
    kept.write(['{"process": "engine-a"}', "100% of %s as it is"])
    own.handle(logging.makeLogRecord({"msg": "the supervisor's"}))
    kept.write(["later"])
    for one in (kept, own):
        one.close()
    assert kept.path == tmp_path / "logs" / "osd.log" and kept.problem == ""
    assert kept.path.read_text().splitlines() == [
        '{"process": "engine-a"}',
        "100% of %s as it is",
        "the supervisor's",
        "later",
    ]


def test_the_file_is_bounded(tmp_path: Path) -> None:
    kept = LogOfReplicas(load_config(flags={"log": {"file": str(tmp_path / "all.log"), "max_bytes": 1 << 16}}))
    for _ in range(20):
        kept.write(["x" * 8000])
    kept.close()
    assert {path.name for path in tmp_path.glob("*.log*")} == {"all.log", "all.log.1"}
    assert max(path.stat().st_size for path in tmp_path.glob("*.log*")) < (1 << 16) + 8001


def test_without_a_folder_to_write_to_it_says_so_and_replicas_are_not_disturbed(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    kept = LogOfReplicas(load_config(flags={"log": {"file": str(tmp_path / "taken" / "osd.log")}}))
    assert "set log.file to a path that can be written" in kept.problem
    assert kept.handlers() == []
    kept.write(["nowhere to go"])


def test_records_say_which_node_they_are_from() -> None:
    record = logging.makeLogRecord({"msg": "hello", "name": "osd.x", "levelname": "INFO"})
    as_json = json.loads(JsonLines("engine-a", "10.0.0.7").format(record))
    assert (as_json["process"], as_json["node"]) == ("engine-a", "10.0.0.7")
    assert "engine-a@10.0.0.7 osd.x: hello" in TextLines("engine-a", "10.0.0.7").format(record)
    assert "node" not in json.loads(JsonLines("engine").format(record)), "one machine needs no name"
