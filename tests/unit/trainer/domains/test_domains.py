"""A domain gets a drafter of its own where held-out queries show that it beats the base drafter, and only there."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from osd.io.domains.store import DomainStore
from osd.records.errors import OutcomeSinkError
from osd.records.events import Event
from osd.records.outcome import Outcome
from osd.records.version import MERGED, UNTRAINED, WeightManifest
from tests.kit.clock import Clock
from tests.kit.trainer_fakes import FakeSource, FakeStore, feature_student, make_outcome, trainer_config
from trainer.domains import domains
from trainer.domains.branch_store import BASE_VERSION, BranchStore
from trainer.domains.domains import DomainParts, DomainTrainers
from trainer.domains.fork import Fork
from trainer.loop.loop import Trainer

_STEPS = {"sql": 1, "code": 5, "mail": 1}
"""By how much the second token of an answer exceeds its first: what a drafter has to learn."""


class _Listed:
    def __init__(self) -> None:
        self.domains: list[str] = []

    def read(self) -> list[str]:
        return self.domains

    def add(self, domain: str) -> None:
        self.domains.append(domain)


class _Bench:
    """Trainers of domains and everything around them."""

    def __init__(self, folder: Path, *, most: int = 2, **config: object) -> None:
        self.folder, self.most, self.config = folder, most, config
        self.source, self.base, self.clock = FakeSource(), FakeStore(), Clock()
        self.stores: defaultdict[str, FakeStore] = defaultdict(FakeStore)
        self.events: list[Event] = []
        self.num_asked: defaultdict[str, int] = defaultdict(int)
        first = feature_student()
        self.base.publish(first.state(), kind=first.kind, config=first.config, parent=None, note=UNTRAINED)
        self.listed = _Listed()
        self.trainer = self.start()

    def start(self) -> DomainTrainers:
        """A new trainer process on the same folders, stream and stores."""
        self.source.new_reader()
        parts = DomainParts(self.most, self.listed, self.stores.__getitem__, lambda domain: self.folder / domain)
        self.trainer = DomainTrainers(
            parts,
            trainer_config(gate_every_steps=5, **self.config),
            feature_student(),
            self.source,
            self.base,
            self.folder / "base",
            target_id="tiny",
            on_event=self.events.append,
            clock=self.clock,
        )
        return self.trainer

    def ask(self, domain: str, num: int, rule: str = "") -> None:
        """So many outcomes of a domain, whose tokens follow its rule (or another's)."""
        for _ in range(num):
            number = self.num_asked[domain]
            self.num_asked[domain] += 1
            prompt_ids = [12 + number // 6 % 12, *(number % 6 + step for step in range(3))]  # one of 72
            output_ids = [prompt_ids[-1] + 1, prompt_ids[-1] + 1 + _STEPS.get(rule or domain, 1)]
            self.source.put(
                make_outcome(f"{domain}-{number}", prompt_ids=prompt_ids, output_ids=output_ids, domain=domain)
            )

    def run(self, times: int) -> None:
        for _ in range(times):
            self.trainer.run_once()

    def latest(self, domain: str) -> WeightManifest | None:
        return self.stores[domain].latest()


@pytest.fixture
def bench(tmp_path: Path) -> _Bench:
    return _Bench(tmp_path)


def test_domains_that_differ_earn_drafters_of_their_own(tmp_path: Path) -> None:
    """After the same prompt, the domains go on with different tokens: one drafter cannot do both."""
    bench = _Bench(tmp_path, learning_rate=0.02)
    bench.ask("sql", 80)
    bench.ask("code", 80)
    for _ in range(8):
        bench.run(50)
        both = [bench.latest(domain) for domain in ("sql", "code")]
        if all(one is not None and one.gate["length"] > 1.5 for one in both):
            break
    for domain in ("sql", "code"):
        latest = bench.latest(domain)
        assert latest is not None, f"{domain} has earned no drafter"
        first = bench.stores[domain].versions[1][0]
        assert first.gate["gain_low"] > 0 and first.gate["length"] > first.gate["serving_length"]
        assert first.parent is None and first.note.startswith("beat the base drafter's version ")
        assert latest.gate["length"] > 1.5
    assert sorted(bench.listed.domains) == ["code", "sql"]
    told = [event.message for event in bench.events if event.kind == "publish"]
    [first_told] = [one for one in told if one.startswith("domain 'sql': drafter version 1: held-out ")]
    assert ", the base drafter has " in first_told and "gain between +" in first_told
    status = bench.trainer.status()
    assert {domain: one.published_version > 0 for domain, one in status.domains.items()} == {"sql": True, "code": True}


def test_where_one_drafter_is_as_good_it_stays_one(bench: _Bench) -> None:
    bench.ask("default", 60, rule="sql")
    bench.run(80)
    bench.ask("sql", 80)
    bench.ask("mail", 80)
    bench.run(80)
    status = bench.trainer.status()
    assert {domain: one.published_version for domain, one in status.domains.items()} == {"sql": 0, "mail": 0}
    assert all(one.steps > 20 and one.gate["published"] == 0.0 for one in status.domains.values())
    assert bench.listed.domains == [] and bench.latest("sql") is bench.latest("mail") is None


class _Split(_Bench):
    """Domain `sql` has a drafter of its own, in a real store; nothing is trained any more."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, learning_rate=0.02)
        self.own = DomainStore(folder / "weights")
        self.stores["sql"] = self.own  # type: ignore[assignment]
        self.ask("sql", 80)
        self.ask("code", 80)
        for _ in range(40):
            if self.length <= 1.5:
                self.run(10)
        assert self.length > 1.5
        monkeypatch.setattr(Trainer, "_state", lambda self: "yielding")
        self.run(20)

    @property
    def length(self) -> float:
        """Of its latest version, when that was published."""
        latest = self.own.latest()
        return latest.gate["length"] if latest else 0.0

    def base_learns_it(self) -> None:
        latest = self.own.latest()
        assert latest is not None
        manifest, state = self.own.load(latest.number)
        self.base.publish(state, kind=manifest.kind, config=manifest.config, parent=1)

    def merges(self) -> list[Event]:
        return [event for event in self.events if event.kind == "merge"]


@pytest.mark.timeout(120)
def test_a_drafter_that_is_no_better_than_the_base_drafter_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = _Split(tmp_path, monkeypatch)
    last = bench.own.latest()
    assert last is not None
    bench.base_learns_it()
    bench.ask("sql", 64)
    bench.run(20)
    figures = bench.trainer.status().domains["sql"].against_base
    assert figures["length"] == figures["base_length"] > 1.5 and figures["gain_low"] == figures["gain_high"] == 0.0
    assert not bench.merges() and bench.own.latest() == last, "one comparison is not enough"
    bench.ask("sql", 64)
    bench.run(20)
    [merge] = bench.merges()
    assert merge.message.startswith("the base drafter serves domain 'sql' again: held-out acceptance length ")
    assert merge.data["gain_low"] == 0.0
    assert bench.own.latest() is None
    assert {one.rolled_back.startswith(MERGED) for one in bench.own.list()} == {True}
    assert bench.trainer.status().domains["sql"].published_version == 0
    trained, published = bench.trainer._own["sql"]._student.state(), bench.base.load(bench.base._latest)[1]
    assert torch.equal(trained["fuse.weight"], published["fuse.weight"])


def test_a_drafter_that_is_better_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = _Split(tmp_path, monkeypatch)
    bench.base.roll_back(to=1, reason="it was never trained")
    for _ in range(4):
        bench.ask("sql", 64)
        bench.run(20)
    figures = bench.trainer.status().domains["sql"].against_base
    assert figures["gain_low"] > 0.0 and figures["length"] > figures["base_length"]
    assert not bench.merges() and bench.own.latest() is not None


@pytest.mark.parametrize("wish", ["pinned", "frozen"])
def test_a_drafter_that_an_operator_wants_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    bench = _Split(tmp_path, monkeypatch)
    latest = bench.own.latest()
    assert latest is not None
    bench.base_learns_it()
    if wish == "pinned":
        bench.own.confirm(latest.number, pinned="an experiment")
    else:
        bench.trainer.demands.frozen = frozenset({"sql"})
    for _ in range(4):
        bench.ask("sql", 64)
        bench.run(20)
    assert not bench.merges() and bench.own.latest() == latest


def test_a_domains_drafter_learns_from_its_domain_only(bench: _Bench) -> None:
    bench.ask("sql", 80)
    bench.ask("code", 80)
    bench.run(20)
    for domain, trainer in bench.trainer._own.items():
        known = [outcome for _, outcome in trainer._replay.since(0)]
        assert {one.domain for one in known} == {domain} and len(known) == 80
        held_out = {one.request_id for one in trainer._replay.held_out()}
        assert held_out == {o.request_id for o in bench.trainer._replay.held_out() if o.domain == domain}
        assert held_out and held_out.isdisjoint(one.request_id for one in trainer._replay.draw())


def test_few_outcomes_and_unlabelled_ones_are_left_to_the_base_drafter(bench: _Bench) -> None:
    bench.ask("sql", domains.MIN_DOMAIN_RECORDS - 1)
    bench.ask("default", 100)
    bench.run(10)
    assert bench.trainer.status().domains == {}
    bench.ask("sql", 1)
    bench.run(3)
    assert set(bench.trainer.status().domains) == {"sql"}


def test_a_new_domain_starts_from_the_nearest_drafter(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mail` is like `sql`, whose drafter is better there than the base drafter, which was never trained."""
    monkeypatch.setattr(DomainTrainers, "_train", lambda self: None)
    bench.ask("sql", 80)
    bench.run(60)
    near = bench.latest("sql")
    assert near is not None
    bench.ask("mail", 80)
    starts: list[dict[str, torch.Tensor]] = []
    start_near = DomainTrainers._start_near

    def noted(self: DomainTrainers, domain: str, trainer: object, student: object, known: object) -> None:
        start_near(self, domain, trainer, student, known)  # type: ignore[arg-type]
        starts.append(student.state())  # type: ignore[attr-defined]

    monkeypatch.setattr(DomainTrainers, "_start_near", noted)
    bench.run(3)
    [state] = starts
    served = bench.stores["sql"].load(near.number)[1]
    base = bench.base.load(1)[1]
    assert all(torch.equal(state[name], served[name]) for name in served)
    assert any(not torch.equal(state[name], base[name]) for name in base)


def test_so_many_domains_are_trained_and_one_that_stays_away_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domains, "_AWAY_OUTCOMES", 100)
    bench = _Bench(tmp_path, most=1)
    bench.ask("sql", 70)
    bench.run(5)
    bench.ask("code", 70)
    bench.run(5)
    assert set(bench.trainer.status().domains) == {"sql"}
    bench.ask("code", 40)
    bench.run(5)
    assert set(bench.trainer.status().domains) == {"code"}
    assert (tmp_path / "sql" / "checkpoint.safetensors").exists()


def test_a_restarted_trainer_goes_on(bench: _Bench) -> None:
    bench.ask("sql", 80)
    bench.run(60)
    bench.trainer.checkpoint()
    bench.trainer._own["sql"].checkpoint()
    before = bench.trainer.status().domains["sql"]
    assert before.steps > 10 and before.records == 80
    bench.start()
    bench.run(2)
    after = bench.trainer.status().domains["sql"]
    assert after.steps >= before.steps and after.records == before.records
    assert after.published_version >= before.published_version


def test_a_domain_that_has_a_drafter_goes_on_with_its_next_outcome(bench: _Bench) -> None:
    first = feature_student()
    bench.stores["sql"].publish(first.state(), kind=first.kind, config=first.config, parent=None)
    bench.listed.add("sql")
    bench.start()
    bench.ask("sql", 1)
    bench.ask("code", 1)
    bench.run(3)
    [(domain, training)] = bench.trainer.status().domains.items()
    assert (domain, training.published_version) == ("sql", 1)


def test_a_candidate_meets_the_base_drafter_as_it_is_by_then(bench: _Bench) -> None:
    """Not as it was when the candidate began: a base drafter that has become better for all is not split from."""
    own, base = FakeStore(), bench.base
    store = BranchStore(own, base, lambda: None)
    latest = store.latest()
    assert latest is not None and latest.number == BASE_VERSION
    better = {name: tensor + 1 for name, tensor in base.load(1)[1].items()}
    base.publish(better, kind="feature", config={}, parent=1)
    assert all(torch.equal(tensor, better[name]) for name, tensor in store.load(BASE_VERSION)[1].items())
    published = store.publish(better, kind="feature", config={}, parent=BASE_VERSION)
    assert (published.number, published.parent, published.note) == (1, None, "beat the base drafter's version 2")
    latest = store.latest()
    assert latest is not None and latest.number == 1
    own._latest = 0  # rolled back to the base drafter
    latest = store.latest()
    assert latest is not None and latest.number == BASE_VERSION


def test_pausing_and_freezing_reach_the_trainers_of_domains(bench: _Bench) -> None:
    bench.ask("sql", 80)
    bench.run(5)
    bench.trainer.pause()
    before = bench.trainer.status().domains["sql"].steps
    bench.run(10)
    assert bench.trainer.status().domains["sql"].steps == before
    assert [event.message for event in bench.events if event.kind == "pause"] == ["training paused"]
    bench.trainer.resume()
    bench.trainer.demands.frozen = frozenset({"sql"})
    bench.run(10)
    assert bench.trainer.status().domains["sql"].steps == before
    bench.trainer.demands.frozen = frozenset()
    bench.run(10)
    assert bench.trainer.status().domains["sql"].steps > before


# ---- one stream for several trainers -----------------------------------------------------------------------------


def _fork(*outcomes: Outcome) -> tuple[FakeSource, Fork]:
    source = FakeSource()
    for outcome in outcomes:
        source.put(outcome)
    return source, Fork(source, lambda domain: None)


def test_an_outcome_is_acknowledged_once_all_its_trainers_have_it_safe() -> None:
    source, fork = _fork(make_outcome("a", domain="sql"), make_outcome("b", domain="code"))
    branch = fork.branch("sql")
    assert [outcome.request_id for _, outcome in fork.read(9, 0)] == ["a", "b"]
    assert [outcome.request_id for _, outcome in branch.read(9, 0)] == ["a"] and branch.lag() == 0
    fork.ack(["0-0", "1-0"])
    assert source.acked == ["1-0"]
    branch.ack(["0-0"])
    assert source.acked == ["1-0", "0-0"]


def test_an_acknowledgement_that_failed_is_made_again() -> None:
    source, fork = _fork(make_outcome("a", domain="sql"))
    branch = fork.branch("sql")
    fork.read(9, 0)
    fork.ack(["0-0"])
    source.down = True
    with pytest.raises(OutcomeSinkError):
        branch.ack(["0-0"])
    source.down = False
    branch.ack(["0-0"])
    assert source.acked == ["0-0"]


def test_a_branch_that_ends_owes_nothing() -> None:
    source, fork = _fork(make_outcome("a", domain="sql"))
    fork.branch("sql")
    fork.read(9, 0)
    fork.ack(["0-0"])
    fork.close("sql")
    assert source.acked == ["0-0"]
