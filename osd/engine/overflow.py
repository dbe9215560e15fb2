"""Handles rows whose logits are NaN or infinite: run again alone, and ended if that does not help."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np

from osd.engine.sequence import Sequence
from osd.models.target import Target
from osd.verify.logits import Logits
from osd.verify.verdict import verify_rows


def read_again(target: Target, rows: Rows[Sequence], committed: list[list[int]], logits: Logits) -> None:
    """Run the last token of every row that commits nothing again, alone and without its proposal.

    The cause may not be the query itself. Attention multiplies the values of masked positions by zero, and zero times
    NaN or infinity is NaN, so a proposed token, padding, or an earlier query's data beyond this one's length may be the
    cause. Everything beyond the known tokens is therefore zeroed first.

    Args:
        target: has just run a pass over all rows.
        rows: the decoding rows.
        committed: each row's tokens, empty where its logits were not finite; filled in where they are finite alone.
        logits: of that pass; those of the second pass replace them.
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
