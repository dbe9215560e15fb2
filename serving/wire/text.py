"""Text in a request."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def utf8(text: str) -> str:
    """The text itself; ValueError if it cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer reads
        raise ValueError("the text holds an unpaired surrogate") from error
    return text


Text = Annotated[str, AfterValidator(utf8)]
