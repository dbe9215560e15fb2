"""A query in progress with what its reader has received so far, so that another engine can continue the answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from osd.records.query import Request, TokenDelta


@dataclass(slots=True)
class Delivered:
    """One query in progress."""

    request: Request
    output_ids: list[int] = field(default_factory=list)
    num_chars: int = 0
    is_finished: bool = False

    def take(self, delta: TokenDelta) -> None:
        """Count a delta as delivered."""
        self.output_ids.extend(delta.token_ids)
        self.num_chars += len(delta.text)
        self.is_finished = delta.finish_reason is not None

    def resumed(self) -> Request:
        """The query as an engine should continue it."""
        return replace(self.request, resume_ids=tuple(self.output_ids), resume_chars=self.num_chars)
