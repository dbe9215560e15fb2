"""The field of a request that ends answers which repeat themselves."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from osd.records.asked.limits import RepetitionLimit
from serving.wire.inert_fields import WireModel

_MOST_PATTERN_TOKENS = 256


class RepetitionDetection(WireModel):
    """vLLM's `repetition_detection`: a pattern of tokens that comes so often in a row ends the answer."""

    max_pattern_size: int = Field(
        default=0, ge=0, le=_MOST_PATTERN_TOKENS, description="Tokens of the longest pattern; 0 looks for none."
    )
    min_pattern_size: int = Field(default=0, ge=0, description="Tokens of the shortest pattern; 0 is 1.")
    min_count: int = Field(
        default=0, ge=0, description="How often it comes in a row, at least 2.", validate_default=True
    )

    @field_validator("min_pattern_size")
    @classmethod
    def _is_no_longer(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("max_pattern_size", value):
            raise ValueError("it is above max_pattern_size")
        return value

    @field_validator("min_count")
    @classmethod
    def _repeats(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("max_pattern_size") and value < 2:
            raise ValueError("a pattern is repeated if it comes at least twice")
        return value

    def limit(self) -> RepetitionLimit | None:
        """The limit as the engine takes it; None: there is none."""
        if not self.max_pattern_size:
            return None
        return RepetitionLimit(
            min_tokens=self.min_pattern_size or 1, max_tokens=self.max_pattern_size, num_repeats=self.min_count
        )
