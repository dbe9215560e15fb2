"""Domains as labels: bounded, and the places are those of domains that have queries."""

from __future__ import annotations

from osd.monitor.labels import Domains
from tests.kit.clock import Clock

DAY_S = 86_400.0


def test_the_first_ones_keep_their_names() -> None:
    domains = Domains(2, known=["before"])
    assert [domains.label(name) for name in ("a", "b", "before", "a", "", "c")] == [
        "a",
        "other",
        "before",
        "a",
        "",
        "other",
    ]


def test_a_domain_without_queries_for_two_days_gives_its_place_to_one_with_some() -> None:
    clock, forgotten = Clock(), list[str]()
    domains = Domains(2, on_forgotten=forgotten.append, clock=clock)
    domains.label("gone")
    domains.label("stays")
    for _ in range(30):
        clock.now_s += DAY_S / 10
        assert domains.label("stays") == "stays"
        if clock.now_s < 2 * DAY_S:
            assert domains.label("new") == "other"
    assert domains.label("told of", is_active=False) == "other", "what only has old figures takes no place"
    assert domains.label("gone", is_active=False) == "gone" and forgotten == []
    assert domains.label("new") == "new" and forgotten == ["gone"]
    assert domains.label("gone") == "other" and domains.label("stays") == "stays"


def test_what_was_put_together_before_takes_no_place() -> None:
    domains = Domains(1)
    assert [domains.label(name) for name in ("other", "a", "b", "other")] == ["other", "a", "other", "other"]
