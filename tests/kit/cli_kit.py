"""Helpers for tests of the `osd` command."""

from __future__ import annotations


def the_error(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert status == 2, err
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err.removeprefix("error: ").rstrip("\n")
