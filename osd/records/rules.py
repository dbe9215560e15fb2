"""Names of the rules by which sampled proposals are judged."""

from __future__ import annotations

from typing import Literal

AcceptRule = Literal["token", "block"]
"""How sampled proposals are judged: token-wise rejection (`osd.verify.token_rule`) or block verification."""
