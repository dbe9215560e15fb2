"""`truncation: "auto"`: leaves out the oldest turns of a conversation that the context does not hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from serving.responses.items import Item, MessageItem
from serving.wire.errors import ApiError

T = TypeVar("T")


async def with_newest_turns(items: Sequence[Item], prepare: Callable[[Sequence[Item]], Awaitable[T]]) -> T:
    """What `prepare` makes of the items, without as few of the oldest turns as it takes.

    A turn begins with a user's message. Messages of the system stay. Tries log2(number of turns) times.

    Args:
        items: the conversation.
        prepare: raises ApiError of code context_length_exceeded for one that is too long.

    Raises:
        ApiError: the newest turn alone is too long, or `prepare` raised another error.
    """
    starts = [at for at, item in enumerate(items) if at == 0 or _is_of(item, "user")]
    fewest, most = 0, len(starts) - 1  # turns to leave out
    prepared = None
    while fewest <= most:
        num_left_out = 0 if fewest == 0 else (fewest + most) // 2
        start = starts[num_left_out]
        try:
            prepared = await prepare([*(one for one in items[:start] if _is_of(one, "system")), *items[start:]])
        except ApiError as error:
            if error.code != "context_length_exceeded" or num_left_out == len(starts) - 1:
                raise
            fewest = num_left_out + 1
        else:
            most = num_left_out - 1
    assert prepared is not None
    return prepared


def _is_of(item: Item, role: str) -> bool:
    return isinstance(item, MessageItem) and {"developer": "system"}.get(item.role, item.role) == role
