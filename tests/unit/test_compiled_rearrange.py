"""Numbers in another order: every one where it belongs, and nothing beside them touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from osd.models.compiled.rearrange import interleave, transpose


@njit
def _transpose(rows_WS: Any, columns_SW: Any) -> None:
    transpose(rows_WS, columns_SW)


@njit
def _interleave(rows_LW: Any, pairs_SW: Any) -> None:
    interleave(rows_LW, pairs_SW)


@pytest.mark.parametrize("num_steps", [1, 16, 20, 48])
@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 32])
def test_transposed(num_rows: int, num_steps: int) -> None:
    rows_WS = np.random.default_rng(0).integers(2**32, size=(num_rows, 2 * num_steps), dtype=np.uint32)[:, :num_steps]
    columns_SW = np.full((num_steps + 1, 32 + 3), 7, np.uint32)
    _transpose(rows_WS, columns_SW[:num_steps, :32])
    assert (columns_SW[:num_steps, :num_rows] == rows_WS.T).all()
    assert (columns_SW[num_steps:] == 7).all() and (columns_SW[:, 32:] == 7).all()


@pytest.mark.parametrize("width", [32, 16, 8])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 64])
def test_interleaved(num_rows: int, width: int) -> None:
    rows_LW = np.random.default_rng(0).integers(2**16, size=(num_rows, 80), dtype=np.uint16)[:, 5 : 5 + width]
    pairs_SW = np.full((num_rows // 2 + 1, 32), 7, np.uint32)
    _interleave(rows_LW, pairs_SW)
    first, second = rows_LW[0 : num_rows // 2 * 2 : 2].astype(np.uint32), rows_LW[1::2].astype(np.uint32)
    assert (pairs_SW[:-1, :width] == first | second << 16).all()
    assert (pairs_SW[-1] == 7).all() and (pairs_SW[:, width:] == 7).all()
