"""The kinds of events that exist are those that something emits, and the admin page colours no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import osd
from osd.records.events import EventKind

ROOT = Path(osd.__file__).parent.parent
EMITTED = re.compile(r'(?:kind=|event\(\s*)"(\w+)"')


def test_every_kind_is_emitted_somewhere() -> None:
    sources = [path for package in ("osd", "trainer", "actors", "serving") for path in (ROOT / package).rglob("*.py")]
    emitted = {kind for path in sources for kind in EMITTED.findall(path.read_text(encoding="utf-8"))}
    assert set(get_args(EventKind)) <= emitted


def test_the_page_colours_only_these() -> None:
    page = (ROOT / "serving" / "admin" / "static" / "events.js").read_text(encoding="utf-8")
    moods = re.search(r"const EVENT_MOODS = \{(.*?)\}", page, re.DOTALL)
    assert moods is not None
    assert set(re.findall(r"(\w+):", moods[1])) <= set(get_args(EventKind))
