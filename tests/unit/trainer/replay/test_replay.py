"""What is remembered, what is held out, and what is drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from osd.records.outcome import Outcome
from tests.kit.trainer_fakes import make_outcome
from trainer.replay.replay import Replay
from trainer.students.token_counts import TokenCounts, most_frequent

MIB = 1 << 20


def _filled(num: int, *, max_bytes: int = 8 * MIB, domain: str = "default", share: float = 0.2) -> Replay:
    replay = Replay(max_bytes, share, 1000, seed=0)
    for number in range(num):
        replay.add(_outcome(number, domain))
    return replay


def _outcome(number: int, domain: str = "default") -> Outcome:
    """Each with another answer."""
    return make_outcome(f"q-{number}", output_ids=(number % 24, number // 24 % 24, number // 576, 7), domain=domain)


def test_a_record_is_held_out_for_good_and_in_every_process() -> None:
    replay = _filled(400)
    assert replay.num_held_out == pytest.approx(80, abs=30)
    drawn = {outcome.request_id for outcome in replay.draw()}
    held_out = {outcome.request_id for outcome in replay.held_out()}
    assert len(drawn) == replay.num_train and not drawn & held_out
    code = (
        "from trainer.replay.replay import Replay; r = Replay(1 << 20, 0.2, 9, 0);"
        "import json; print(json.dumps([r.is_held_out(f'q-{n}') for n in range(50)]))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "123"}
    other = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=env).stdout)
    assert other == [f"q-{n}" in held_out for n in range(50)]


def test_bytes_and_held_out_records_are_bounded_and_the_oldest_go_first() -> None:
    replay = Replay(60_000, 0.5, 5, seed=0)
    for number in range(200):
        replay.add(_outcome(number))
        assert replay.size_bytes <= 60_000
    assert replay.num_held_out == 5
    ids = sorted(int(outcome.request_id[2:]) for outcome in replay.draw())
    held_out = [int(outcome.request_id[2:]) for outcome in replay.held_out()]
    train = [number for number in range(200) if not replay.is_held_out(f"q-{number}")]
    assert ids == train[-len(ids) :]
    assert held_out == [number for number in range(200) if replay.is_held_out(f"q-{number}")][-5:]


def test_a_record_that_can_never_fit_evicts_nothing() -> None:
    replay = _filled(20, max_bytes=100_000)
    before = replay.num_train, replay.num_held_out
    assert replay.add(make_outcome("huge", prompt_ids=[1] * 4000)) == "refused"
    assert (replay.num_train, replay.num_held_out) == before


def test_the_same_request_counts_once() -> None:
    replay = _filled(5)
    assert replay.add(_outcome(3)) == "refused"
    assert replay.num_train + replay.num_held_out == 5


def test_draws_are_seeded_and_prefer_the_newest() -> None:
    firsts = Counter[int]()
    one, other = _filled(900), _filled(900)
    assert [o.request_id for o in one.draw()] == [o.request_id for o in other.draw()]
    for _ in range(300):
        firsts[int(next(one.draw()).request_id[2:]) // 450] += 1
    assert firsts[1] > firsts[0] > 10


def test_domains_share_the_draws_by_the_root_of_their_size() -> None:
    replay = Replay(8 * MIB, 0.01, 10, seed=0)
    for number in range(500):
        replay.add(_outcome(number, "rare" if number % 100 == 99 else "usual"))
    firsts = Counter(next(replay.draw()).domain for _ in range(300))
    assert 0.04 < firsts["rare"] / 300 < 0.2  # 1 % of the records; its root's share is 9 %


def test_a_flood_of_one_domain_displaces_only_itself() -> None:
    replay = Replay(60_000, 0.5, 6, seed=0)
    for number in range(12):
        replay.add(make_outcome(f"small-{number}", output_ids=(4, 5, number), domain="small"))
    small = {outcome.request_id for outcome in (*replay.draw(), *replay.held_out())}
    for number in range(300):
        replay.add(make_outcome(f"flood-{number}", output_ids=(4, number % 24, number // 24), domain="flood"))
    assert replay.size_bytes <= 60_000 and replay.num_held_out == 6
    kept = Counter(outcome.domain for outcome in replay.draw())
    held_out = Counter(outcome.domain for outcome in replay.held_out())
    assert kept["small"] + held_out["small"] >= min(len(small), 9)
    assert kept["flood"] >= kept["small"] and held_out == {"small": 3, "flood": 3}
    newest = [f"flood-{number}" for number in range(300) if not replay.is_held_out(f"flood-{number}")]
    assert {o.request_id for o in replay.draw() if o.domain == "flood"} == set(newest[-kept["flood"] :])


def test_one_query_repeated_is_kept_a_few_times() -> None:
    replay = Replay(8 * MIB, 0.2, 1000, seed=0)
    added = [replay.add(make_outcome(f"q-{number}")) for number in range(100)]
    assert added == ["kept"] * 8 + ["copy"] * 92
    assert replay.num_train + replay.num_held_out == replay.num_seen == 8
    assert replay.add(make_outcome("other", output_ids=(7, 7))) == "kept"


def test_focus_on_the_present_almost_forgets_the_past() -> None:
    replay = _filled(300, domain="past")
    replay.focus_on_present()
    for number in range(300, 400):
        replay.add(_outcome(number, "past"))
    firsts = [int(next(replay.draw()).request_id[2:]) for _ in range(200)]
    assert sum(number >= 300 for number in firsts) > 160


def test_state_restores_the_same_replay() -> None:
    replay = _filled(50, max_bytes=60_000)
    list(replay.draw())
    copy = Replay(60_000, 0.2, 1000, seed=99)
    copy.restore(json.loads(json.dumps(replay.state())), replay.since(0))
    assert copy.num_seen == replay.num_seen and copy.size_bytes == replay.size_bytes
    assert [o.request_id for o in copy.draw()] == [o.request_id for o in replay.draw()]
    assert replay.oldest == replay.since(0)[0][0] == copy.oldest


def test_the_vocabulary_is_the_most_frequent_tokens_with_ties_by_low_id() -> None:
    counts = TokenCounts(24)
    for number in range(3):
        counts.observe(make_outcome(f"q-{number}", output_ids=(20, 21, 20, 20), top_k=1))
    assert most_frequent(counts.counts_V, 4).tolist() == [0, 1, 20, 21]
    counts.focus_on_present()
    for number in range(3):
        counts.observe(make_outcome(f"p-{number}", output_ids=(9, 9, 8, 8), top_k=1))
    assert most_frequent(counts.counts_V, 2).tolist() == [8, 9]
