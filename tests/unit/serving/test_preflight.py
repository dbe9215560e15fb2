"""A store that the service could not use is refused before anything is started."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from osd.records.errors import OsdError
from serving.preflight import check_machine
from tests.kit.stores import config_of_store

_ONCE = {"retries": {"max_attempts": 0}}
"""Of botocore, which else tries again for some ten seconds."""


def test_a_folder_that_is_not_there_yet_will_do(tmp_path: Path) -> None:
    check_machine(config_of_store(f"file://{tmp_path}/shared", {}, tmp_path))


@pytest.mark.parametrize(
    ("url", "options", "reason"),
    [
        ("memory://osd", {}, "which every process has for itself; give a folder"),
        ("floppy://a", {}, "protocol 'floppy' is unknown"),
        (
            "s3://osd/a",
            {"endpoint_url": "http://127.0.0.1:9", "key": "a", "secret": "b", "config_kwargs": _ONCE},
            "cannot read the store s3://osd/a/weights: .*http://127.0.0.1:9.*; see that store.url can be reached",
        ),
    ],
)
def test_an_unfit_store_is_explained_in_one_line(
    url: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    if url.startswith("s3"):
        pytest.importorskip("s3fs", reason="osd[s3] is not installed")
    with pytest.raises(OsdError, match=reason) as told:
        check_machine(config_of_store(url, options, tmp_path))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("broken", "step"), [("replace", "rename a file over another"), ("flock", "lock a file")])
def test_a_folder_that_cannot_rename_or_lock_is_refused(
    broken: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some mounted object stores and network disks."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    if broken == "replace":
        monkeypatch.setattr(Path, "replace", refuse)
    else:
        monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OsdError, match=f"cannot {step} in .*shared/weights: Operation not supported; .*NFS version 4"):
        check_machine(config_of_store(f"file://{tmp_path}/shared", {}, tmp_path))
