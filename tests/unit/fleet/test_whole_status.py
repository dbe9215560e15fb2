"""Several engines' status is told as one's."""

from __future__ import annotations

from osd.fleet.whole_status import whole_status
from osd.records.status import DrafterCounts, EngineStatus, ServedCounts


def _status(version: int, running: int, utilisation: float, queries: float) -> EngineStatus:
    return EngineStatus(
        target="t",
        drafter_kind="feature",
        drafter_version=version,
        running=running,
        waiting=1,
        max_slots=4,
        context_tokens=128,
        running_tokens=10 * running,
        kept_tokens=7,
        utilisation=utilisation,
        speculation_length=2,
        speculation_enabled=True,
        uptime_s=10.0 * running,
        counters={"queries_total": queries},
        acceptance_by_version={version: {"rounds": 2, "accepted": 1}, 0: {"rounds": 1, "accepted": 0}},
        drafters=(DrafterCounts(name="feature", version=version, rounds=2, proposed=4, accepted=1, committed=3),),
        served=(
            ServedCounts(domain="chat", drafter="", version=0, figures={"queries": queries}),
            ServedCounts(domain="code", drafter="feature", version=version, figures={"rounds": 2.0, "decode_ms": 1.5}),
        ),
    )


def test_counts_are_added() -> None:
    whole = whole_status([_status(7, 1, 0.2, 5), _status(8, 2, 0.4, 6), _status(8, 3, 0.6, 7)])
    assert (whole.running, whole.waiting, whole.max_slots, whole.drafter_version) == (6, 3, 12, 8)
    assert (round(whole.utilisation, 6), whole.uptime_s, whole.context_tokens) == (0.4, 30.0, 128)
    assert (whole.running_tokens, whole.kept_tokens) == (60, 21)
    assert whole.counters == {"queries_total": 18}
    assert whole.acceptance_by_version == {
        0: {"rounds": 3, "accepted": 0},
        7: {"rounds": 2, "accepted": 1},
        8: {"rounds": 4, "accepted": 2},
    }
    assert [(one.version, one.rounds, one.proposed, one.accepted, one.committed) for one in whole.drafters] == [
        (7, 2, 4, 1, 3),
        (8, 4, 8, 2, 6),
    ]
    assert [(one.domain, one.drafter, one.version, one.figures) for one in whole.served] == [
        ("chat", "", 0, {"queries": 18.0}),
        ("code", "feature", 7, {"rounds": 2.0, "decode_ms": 1.5}),
        ("code", "feature", 8, {"rounds": 4.0, "decode_ms": 3.0}),
    ]


def test_one_engines_status_is_its_own() -> None:
    assert whole_status([_status(7, 1, 0.2, 5)]) == _status(7, 1, 0.2, 5)
