"""The documents name files and headings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_PATH = re.compile(r"`((?:osd|trainer|actors|serving|benchmarks|tests|deploy)/[\w/.-]*?\w)/?`")
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    named = set(_PATH.findall(document.read_text(encoding="utf-8")))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    prose = _CODE.sub("", document.read_text(encoding="utf-8"))
    links = {link for link in _LINK.findall(prose) if "://" not in link}
    assert [link for link in sorted(links) if not _exists(link, document)] == []


@pytest.mark.parametrize("link", ["structure.md#no-such-heading", "no_such_page.md", "#no-such-heading"])
def test_a_link_that_leads_nowhere_is_noticed(link: str) -> None:
    assert not _exists(link, ROOT / "docs/structure.md")


def _exists(link: str, document: Path) -> bool:
    name, _, anchor = link.partition("#")
    target = document.parent / name if name else document
    return target.exists() and (not anchor or anchor in _anchors(target))


def _anchors(document: Path) -> set[str]:
    """Headings of a page as GitHub makes links of them."""
    prose = _CODE.sub("", document.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(prose)}
