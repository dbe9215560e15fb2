"""Blends a student's weights with those of the version that training began with.

Half-way between a pretrained network and what it was fine-tuned to, both what it knew and what it has learnt are
nearly whole (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903). So the student trains on as it is, and blends of it are
published.
"""

from __future__ import annotations

import torch

from trainer.students.student import Student


@torch.no_grad()
def blend(student: Student, first: Student, share: float) -> Student:
    """A twin of the student with `share` of the weights of `first`; both stay as they are."""
    twin = student.twin()
    twin.load_state(student.state())
    for parameter, there in zip(twin.parameters(), first.parameters(), strict=True):
        parameter.lerp_(there, share)
    return twin
