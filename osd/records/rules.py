"""Names of the accept rules."""

from __future__ import annotations

from typing import Literal

AcceptRule = Literal["token", "block"]
"""How sampled proposals are verified: token-wise rejection (`osd.verify.token_rule`) or block verification."""
