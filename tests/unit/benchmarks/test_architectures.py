"""`docs/models.md` says what becomes of each architecture."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.architectures import all_names, line_of, table, try_name

_PAGE = Path(__file__).parents[3] / "docs" / "models.md"
_FEW = {
    "falcon with alibi": "refused",
    "gemma2": "served",
    "gpt2": "served",
    "gpt_oss": "served",
    "llama": "served",
    "opt": "served",
    "phi3 with longrope": "served",
    "bloom": "refused",
    "gpt_neo": "refused",
    "mamba": "refused",
}
pytestmark = pytest.mark.filterwarnings("ignore")  # of foreign code


def _is_on_the_page(found: str) -> bool:
    """But for figures, which hang on the machine; of another version of transformers anything is."""
    page, found = (re.sub(r"off by [\d.e-]+", "off", text) for text in (_PAGE.read_text(), found))
    return found in page or f"With transformers {version('transformers')}:" not in page


@pytest.mark.parametrize("name", _FEW)
def test_the_page_says_what_becomes_of_a_model(name: str) -> None:
    row = try_name(name)
    assert row.verdict == _FEW[name], row
    assert _is_on_the_page(line_of(row))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_model_is_served_wrongly() -> None:
    rows = [try_name(name) for name in all_names()]
    assert not [row for row in rows if row.verdict == "wrong"]
    assert _is_on_the_page(table(rows))
