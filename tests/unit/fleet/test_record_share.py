"""The stream's limit is kept by recording an unbiased share of the queries."""

from __future__ import annotations

from collections import Counter

import pytest

from osd.fleet.record_share import RecordShare, is_recorded

_LIMIT = 1000.0


class _Stream:
    """What engines write to it while they obey; somebody looks every second."""

    def __init__(self) -> None:
        self.controller = RecordShare(_LIMIT)
        self.total, self.now_s = 0.0, 0.0
        self.controller.look(0.0, 0.0)

    def run(self, offered: float, seconds: int) -> list[float]:
        """Bytes written in each second while recording everything would take `offered`."""
        written = []
        for _ in range(seconds):
            written.append(offered * self.controller.share)
            self.total, self.now_s = self.total + written[-1], self.now_s + 1.0
            self.controller.look(self.total, self.now_s)
        return written


@pytest.fixture
def stream() -> _Stream:
    return _Stream()


def test_below_the_limit_everything_is_recorded(stream: _Stream) -> None:
    assert stream.run(900.0, 5) == [900.0] * 5
    assert stream.controller.share == 1.0 and stream.controller.bytes_per_s == 900.0


def test_above_the_limit_as_much_as_it_allows(stream: _Stream) -> None:
    written = stream.run(8000.0, 6)
    assert written[0] == 8000.0  # before anybody looked
    assert written[1:] == pytest.approx([_LIMIT] * 5)
    assert stream.controller.share == pytest.approx(1 / 8)


def test_rising_load_is_answered_at_once_and_falling_load_with_care(stream: _Stream) -> None:
    stream.run(2000.0, 5)
    assert stream.run(10_000.0, 2) == pytest.approx([5000.0, _LIMIT])
    shares = [stream.controller.share]
    for _ in range(12):
        stream.run(0.0, 1)
        shares.append(stream.controller.share)
    assert all(later <= 2 * earlier + 1e-12 for earlier, later in zip(shares, shares[1:], strict=False))
    assert shares[1] > shares[0] and shares[-1] == 1.0


def test_where_engines_drop_outcomes_the_stream_takes_no_more_than_it_did(stream: _Stream) -> None:
    """It takes 600 bytes/s of the 1000 that are allowed; engines offer 900 and lose the rest."""
    controller, dropped, lost = stream.controller, 0, []
    for _ in range(30):
        offered = 900.0 * controller.share
        dropped += offered > 600.0
        lost.append(offered > 600.0)
        stream.total, stream.now_s = stream.total + min(offered, 600.0), stream.now_s + 1.0
        controller.look(stream.total, stream.now_s, dropped)
    assert lost[0] and not any(lost[2:20])


def test_a_stream_that_begins_again_changes_nothing(stream: _Stream) -> None:
    stream.run(4000.0, 4)
    share = stream.controller.share
    assert stream.controller.look(0.0, stream.now_s + 1.0) == share
    assert stream.controller.look(0.0, stream.now_s + 2.0) >= share


def test_each_domain_keeps_its_part() -> None:
    """Of ten thousand queries in three domains; the standard error of each share is at most 0.01."""
    kept, all_ = Counter[str](), Counter[str]()
    for number in range(10_000):
        domain = ("code", "chat", "tools")[number * number % 3 if number % 5 else 2]
        all_[domain] += 1
        kept[domain] += is_recorded(f"{domain}-{number}", 0.25)
    assert len(all_) == 3
    for domain in all_:
        assert kept[domain] / all_[domain] == pytest.approx(0.25, abs=0.04)


def test_the_bounds_of_a_share() -> None:
    queries = [f"q{number}" for number in range(1000)]
    assert all(is_recorded(query, 1.0) for query in queries)
    assert not any(is_recorded(query, 0.0) for query in queries)
    few = {query for query in queries if is_recorded(query, 0.2)}
    assert few < {query for query in queries if is_recorded(query, 0.4)}
