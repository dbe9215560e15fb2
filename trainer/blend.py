"""Blends a student's weights with those of the version that training began with.

Half-way between a pretrained network and what it was fine-tuned to, both what it knew and what it has learnt are
nearly whole (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903). So the student trains on as it is, and blends of it are
published.
"""

from __future__ import annotations

import torch

from trainer.student import Student


@torch.no_grad()
def blend(student: Student, first: Student, share: float) -> None:
    """Give `first` this share of the student's weights."""
    for parameter, there in zip(student.parameters(), first.parameters(), strict=True):
        parameter.lerp_(there, share)


def undo_blend(student: Student, first: Student, share: float) -> None:
    """The student of which `blend` made these weights; exact but for rounding."""
    blend(student, first, -share / (1.0 - share))
