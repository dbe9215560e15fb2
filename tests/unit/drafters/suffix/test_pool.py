"""The pool of recent answers: its bound holds, and who floods it forgets first."""

from __future__ import annotations

import random
import threading
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from osd.drafters.suffix.index import NOTHING
from osd.drafters.suffix.pool import AnswerPool
from osd.drafters.suffix.query import SuffixQuery

additions = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "d", "e"]), st.lists(st.integers(0, 9), max_size=400)), max_size=40
)


@given(additions, st.integers(0, 20_000))
def test_the_bound_is_never_exceeded(answers: list[tuple[str, list[int]]], max_bytes: int) -> None:
    pool = AnswerPool(max_bytes)
    for domain, answer in answers:
        pool.add(domain, answer)
        assert pool.size_bytes <= max_bytes


def test_the_stated_size_is_what_the_process_takes() -> None:
    rng, max_bytes = random.Random(0), 1 << 18
    answers = [[rng.randrange(49_152) for _ in range(96)] for _ in range(400)]
    tracemalloc.start()
    try:
        pool = AnswerPool(max_bytes)
        for number, answer in enumerate(answers):
            pool.add(f"domain-{number % 7}", answer)
        taken_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pool.num_tokens > 0.8 * max_bytes / 9, "most of what may be used is used"
    assert taken_bytes <= max_bytes


def test_the_newest_answers_are_kept() -> None:
    pool = AnswerPool(20_000)
    for number in range(200):
        pool.add("a", [1000 + number] + [number] * 50)
    assert pool.propose("a", [1000], 1) == NOTHING
    assert pool.propose("a", [1199], 1).token_ids == (199,)


def test_a_domain_that_floods_the_pool_pushes_out_no_other() -> None:
    pool = AnswerPool(30_000)
    pool.add("small", [5, 6, 7, 8])
    for number in range(300):
        pool.add("flood", [number] * 100)
    assert pool.propose("small", [5, 6], 2).token_ids == (7, 8)


def test_domains_do_not_see_one_another() -> None:
    pool = AnswerPool(30_000)
    pool.add("sql", [1, 2])
    assert pool.propose("code", [1], 1) == NOTHING
    assert pool.propose("sql", [1], 1).token_ids == (2,)


def test_equal_answers_make_equal_pools() -> None:
    rng = random.Random(1)
    answers = [(rng.choice("abc"), [rng.randrange(20) for _ in range(60)]) for _ in range(100)]
    pools = AnswerPool(15_000), AnswerPool(15_000)
    for pool in pools:
        for domain, answer in answers:
            pool.add(domain, answer)
    for _ in range(50):
        context = [rng.randrange(20) for _ in range(4)]
        assert pools[0].propose("a", context, 4) == pools[1].propose("a", context, 4)


def test_a_query_is_continued_from_its_own_text() -> None:
    query = SuffixQuery(AnswerPool(30_000), "a", [1, 2, 3, 4, 9])
    query.extend([1, 2])
    assert query.propose(3).token_ids == (3, 4, 9)


def test_a_query_is_continued_from_answers_where_they_match_better() -> None:
    pool = AnswerPool(30_000)
    pool.add("a", [1, 2, 3, 7, 7])
    query = SuffixQuery(pool, "a", [3, 8, 1, 2])
    query.extend([3])
    assert query.propose(1).token_ids == (7,), "three tokens match there, one in its own text"


def test_the_end_of_the_answer_is_never_repeated_from_the_prompt_alone() -> None:
    assert SuffixQuery(AnswerPool(0), "a", [1, 2, 3]).propose(4) == NOTHING


def test_a_thread_that_proposes_is_not_held_up_by_one_that_adds() -> None:
    """Hundreds of proposals while long answers are added, and none is torn: what follows a number is its successor."""
    pool, done = AnswerPool(1 << 20), threading.Event()

    def add() -> None:
        for start in range(0, 6000, 1500):
            pool.add("a", range(start, start + 1500))
        done.set()

    adder = threading.Thread(target=add)
    adder.start()
    num_proposed = 0
    while not done.is_set():
        for proposal in (pool.propose("a", [number], 3) for number in (10, 1600, 4000)):
            if proposal.token_ids:
                assert list(proposal.token_ids) == list(range(proposal.token_ids[0], proposal.token_ids[-1] + 1))
        num_proposed += 1
    adder.join(60.0)
    assert num_proposed > 100
    assert pool.propose("a", [4000], 1).token_ids == (4001,)
