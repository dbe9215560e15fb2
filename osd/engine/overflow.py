"""Queries whose logits are not finite: read once more without their company, then given up."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np

from osd.engine.sequence import Sequence
from osd.models.target import Target
from osd.verify.logits import Logits
from osd.verify.verdict import verify_rows


def read_again(target: Target, rows: Rows[Sequence], committed: list[list[int]], logits: Logits) -> None:
    """Read the last token of every row that commits nothing again: alone, and without its proposal.

    The query itself need not be what overflowed. Attention multiplies the values of positions that a row may not look
    at by zero, and zero times NaN or infinity is NaN: a proposed token, padding, or what an earlier query left beyond
    this one's length may have done it. So all that lies beyond the known tokens is zeroed first.

    Args:
        target: has just read all rows.
        rows: the decoding rows.
        committed: by row; empty where the logits were not finite. Filled in, but for rows that are not finite alone.
        logits: of the pass; those of the second reading take their place.
    """
    for row, sequence in enumerate(rows):
        if committed[row]:
            continue
        last = sequence.num_tokens - 1
        target.clear_row(row, last)
        alone = target.read(row, np.array([[sequence.output_ids[-1]]]), [last]).logits
        assert alone is not None
        [committed[row]] = verify_rows(alone, [sequence], None)
        logits.replace_first(row, alone)
