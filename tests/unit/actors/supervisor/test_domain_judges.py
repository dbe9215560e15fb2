"""Versions of domains' own drafters: on trial against the base drafter, rolled back to it, pinned, each for itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.engine.engine import judged_of, versions_of
from actors.supervisor.domain_judges import DomainJudges
from actors.supervisor.fleet import Fleet
from osd.config.settings import Config, load_config
from osd.fleet.heartbeat import DomainReport, EngineOrders, EngineReport, QueryRounds
from osd.io.domains.listed import MAX_DOMAINS, open_domains
from osd.io.domains.store import open_versions
from osd.io.weight_store import FileWeightStore
from osd.records.drafter_id import DrafterId
from osd.records.errors import UnknownVersionError, WeightsRefusedError
from osd.records.events import Event
from osd.records.version import MERGED
from tests.kit.reports import engine_report

_ORDERS = EngineOrders(session="s")


class _Fleet:
    """Engines that serve what they are told to, stores by domain, and the judges between them; time stands still."""

    def __init__(self, root: Path, engines: str = "abc") -> None:
        flags = {"swap": {"min_rounds": 20, "watch_rounds": 40}, "drafter": {"kind": "model", "max_domains": 2}}
        self.config: Config = load_config(flags={"state_dir": root, **flags})
        self.engines, self.events, self.now_s = list(engines), list[Event](), 0.0
        self.orders = dict.fromkeys(engines, _ORDERS)
        self.judges = self.new_judges()
        self.reports = dict[str, EngineReport]()
        self.beat()

    def new_judges(self) -> DomainJudges:
        return DomainJudges(
            self.config, lambda: list(self.reports.values()), self.events.append, clock=lambda: self.now_s
        )

    def store(self, domain: str) -> FileWeightStore:
        return open_versions(self.config, "tiny", f"model.{domain}")

    def publish(self, domain: str) -> int:
        open_domains(self.config, "tiny").add(domain)
        return self.store(domain).publish({"weight": torch.ones(2)}, kind="model", config={}, parent=None).number

    def beat(
        self,
        base: dict[str, list[QueryRounds]] | None = None,
        own: dict[tuple[str, str], list[QueryRounds]] | None = None,
        refused: tuple[str, str, int] | None = None,
    ) -> dict[str, dict[str, int]]:
        """Every engine reports and obeys, and the judges look; three times, so that what they decided is obeyed.

        Args:
            base: an engine's rounds of the base drafter.
            own: rounds of a domain's drafter, by engine and domain.
            refused: engine, domain and version.

        Returns:
            By engine, the version of each domain's drafter.
        """
        for _ in range(3):
            for name in self.engines:
                domains = {
                    domain: DomainReport(
                        version=version,
                        rounds=tuple((own or {}).get((name, domain), ())),
                        refused={refused[2]: "torn"} if refused and refused[:2] == (name, domain) else {},
                    )
                    for domain, version in self.orders[name].domain_versions.items()
                }
                rounds = tuple((base or {}).get(name, ()))
                drafter = DrafterId("model", 5)
                self.reports[name] = report = engine_report(name, drafter=drafter, rounds=rounds, domains=domains)
                self.judges.take(report)
                self.orders[name] = self.judges.ordered(_ORDERS, name)
            self.judges.look()
            self.now_s += 60.0
        return {name: self.orders[name].domain_versions for name in self.engines}

    def messages(self) -> list[str]:
        return [event.message for event in self.events]


def _rounds(version: int, num_accepted: int, domain: str, num: int = 4) -> list[QueryRounds]:
    return [QueryRounds(version, f"{domain}{version}-{n}", 10, num_accepted, domain) for n in range(num)]


@pytest.fixture
def fleet(tmp_path: Path) -> _Fleet:
    return _Fleet(tmp_path)


def test_a_first_version_is_compared_with_the_base_drafter_in_its_domain(fleet: _Fleet) -> None:
    """In the other domain the base drafter is poor, which must not count."""
    fleet.beat({"b": _rounds(5, 9, "sql") + _rounds(5, 1, "code")})
    fleet.publish("sql")
    assert fleet.beat() == {"a": {"sql": 1}, "b": {"sql": 0}, "c": {"sql": 0}}
    assert fleet.orders["a"].judged_domains == {"sql"}
    assert fleet.beat(own={("a", "sql"): _rounds(1, 4, "sql")}) == {name: {"sql": 0} for name in "abc"}
    assert fleet.messages() == [
        "domain 'sql': drafter version 1 -> 0: first-token acceptance fell from 0.90 to 0.40 after the swap"
    ]
    assert fleet.store("sql").latest() is None
    status = fleet.judges.status()["sql"]
    assert (status.confirmed, status.trial, status.roll_backs) == (0, None, 1)


def test_a_good_first_version_reaches_all_and_a_later_one_is_compared_with_it(fleet: _Fleet) -> None:
    fleet.beat({"b": _rounds(5, 6, "sql")})
    fleet.publish("sql")
    fleet.beat()
    assert fleet.beat(own={("a", "sql"): _rounds(1, 8, "sql")}) == {name: {"sql": 1} for name in "abc"}
    fleet.publish("sql")
    fleet.beat(own={("b", "sql"): _rounds(1, 8, "sql", num=8)})
    assert fleet.beat(own={("a", "sql"): _rounds(2, 2, "sql")}) == {name: {"sql": 1} for name in "abc"}
    assert [event.kind for event in fleet.events] == ["confirm", "roll_back"]
    assert "from 0.80 to 0.20" in fleet.messages()[-1]


def test_domains_are_judged_each_for_itself(fleet: _Fleet) -> None:
    fleet.beat({"b": _rounds(5, 6, "sql") + _rounds(5, 6, "code")})
    for domain in ("sql", "code"):
        fleet.publish(domain)
    fleet.beat()
    own = {("a", "sql"): _rounds(1, 9, "sql"), ("a", "code"): _rounds(1, 0, "code")}
    assert fleet.beat(own=own) == {name: {"sql": 1, "code": 0} for name in "abc"}


def test_an_operator_goes_back_to_the_base_drafter_and_pins_it(fleet: _Fleet) -> None:
    fleet.publish("sql")
    fleet.beat()
    assert fleet.judges.of("sql").roll_back(0, "one is enough").number == 0
    assert fleet.beat() == {name: {"sql": 0} for name in "abc"}
    fleet.judges.of("sql").pin(0, "one is enough")
    fleet.publish("sql")
    fleet.judges = fleet.new_judges()
    assert fleet.beat() == {name: {"sql": 0} for name in "abc"}
    assert fleet.judges.status()["sql"].pinned == "one is enough"
    fleet.judges.of("sql").unpin()
    fleet.beat()
    assert fleet.beat()["a"] == {"sql": 2}
    with pytest.raises(UnknownVersionError, match="there is no drafter version 9"):
        fleet.judges.of("sql").pin(9, "mistyped")
    with pytest.raises(UnknownVersionError, match="domain 'code' has no drafter of its own"):
        fleet.judges.of("code")


def test_a_split_that_the_trainer_ended_is_no_roll_back(fleet: _Fleet) -> None:
    """The base drafter was found to be as good; every engine serves it at once, and a later split starts anew."""
    fleet.beat({"b": _rounds(5, 6, "sql")})
    fleet.publish("sql")
    fleet.beat()
    assert fleet.beat(own={("a", "sql"): _rounds(1, 8, "sql")})["c"] == {"sql": 1}
    fleet.store("sql").roll_back(to=0, reason=f"{MERGED}gain between -0.02 and +0.02")
    assert fleet.beat() == {name: {"sql": 0} for name in "abc"}
    status = fleet.judges.status()["sql"]
    assert (status.confirmed, status.roll_backs, status.manual_roll_backs) == (0, 0, 0)
    assert status.merged == "gain between -0.02 and +0.02"
    assert [event.kind for event in fleet.events] == ["confirm"]
    fleet.publish("sql")
    fleet.beat()
    assert fleet.beat()["a"] == {"sql": 2}
    assert fleet.judges.status()["sql"].merged == ""


def test_a_version_that_an_engine_refuses_is_nobodys(fleet: _Fleet) -> None:
    fleet.publish("sql")
    fleet.beat()
    assert fleet.beat(refused=("a", "sql", 1)) == {name: {"sql": 0} for name in "abc"}
    assert "refused by engine a: torn" in fleet.store("sql").load(1)[0].rolled_back
    with pytest.raises(WeightsRefusedError, match="refused by engine a"):
        fleet.judges.of("sql").pin(1, "again")


def test_a_restarted_supervisor_goes_on_with_what_the_stores_say(fleet: _Fleet) -> None:
    fleet.beat({"b": _rounds(5, 6, "sql")})
    fleet.publish("sql")
    fleet.beat()
    fleet.beat(own={("a", "sql"): _rounds(1, 8, "sql")})
    fleet.judges = fleet.new_judges()
    fleet.orders = dict.fromkeys(fleet.engines, _ORDERS)
    assert fleet.beat() == {name: {"sql": 1} for name in "abc"}


def test_labels_that_clients_make_up_are_bounded(fleet: _Fleet) -> None:
    """And do not keep a domain with a drafter from being judged."""
    fleet.beat({"b": [rounds for n in range(200) for rounds in _rounds(5, 6, f"d{n}", num=1)]})
    assert len(fleet.judges._judges) == MAX_DOMAINS
    fleet.publish("sql")
    fleet.beat()
    assert fleet.beat()["a"] == {"sql": 1} and len(fleet.judges._judges) == MAX_DOMAINS


def test_orders_reach_the_drafters_by_name() -> None:
    orders = EngineOrders(
        session="s", version=3, is_judged=True, domain_versions={"sql": 2, "a:b": 0}, judged_domains=frozenset({"sql"})
    )
    assert versions_of(orders, "feature") == {"feature": 3, "feature.sql": 2, "feature.a:b": 0}
    assert judged_of(orders, "feature") == {"feature", "feature.sql"}
    assert versions_of(_ORDERS, "feature") == {} and judged_of(_ORDERS, "feature") == set()


def test_without_the_setting_no_domain_has_a_judge(tmp_path: Path) -> None:
    fleet = Fleet(load_config(flags={"state_dir": tmp_path, "drafter": {"kind": "model"}}), "", "", lambda event: None)
    try:
        assert fleet.take(engine_report("a"), _ORDERS).domain_versions == {}
        with pytest.raises(UnknownVersionError, match="drafter.max_domains is 0"):
            fleet.judge("sql")
        assert fleet.status().domains == {}
    finally:
        fleet.close()
