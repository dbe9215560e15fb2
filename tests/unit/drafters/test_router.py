"""The router guesses domains right where it guesses, and leaves other prompts alone."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from osd.drafters import router as module
from osd.drafters.router import NUM_FEATURES, DomainRouter, _Domain, looked_at

_TEMPLATE = tuple(range(40))
"""Tokens that every prompt begins with, as of a chat template."""
_VOCAB_TOKENS = 5000
_NUM_WORDS = 300


def _prompts(domain: int, number: int, *, seed: int, longest: int = 40) -> list[tuple[int, ...]]:
    """Prompts in the words of one domain, half of which are common words; word frequencies follow Zipf's law."""
    words = np.random.default_rng(domain).permutation(np.arange(100, _VOCAB_TOKENS))[:_NUM_WORDS]
    rng = np.random.default_rng((domain, seed))
    share = 1.0 / np.arange(1, _NUM_WORDS + 1)
    prompts = []
    for _ in range(number):
        own = rng.choice(words, size=rng.integers(longest // 4, longest), p=share / share.sum())
        common = rng.integers(40, 100, size=len(own))
        prompts.append((*_TEMPLATE, *own.tolist(), *common.tolist()))
    return prompts


def _taught(domains: Sequence[int], number: int = 60) -> DomainRouter:
    router = DomainRouter()
    for prompts in zip(*(_prompts(domain, number, seed=1) for domain in domains), strict=True):
        for domain, prompt in zip(domains, prompts, strict=True):
            router.learn(f"d{domain}", prompt)
    return router


def _routes(router: DomainRouter, domain: int, *, longest: int = 40) -> Counter[str | None]:
    return Counter(router.route(prompt) for prompt in _prompts(domain, 100, seed=2, longest=longest))


def _num_taken(router: DomainRouter) -> int:
    """Of 400 prompts of domains that it does not know, short and long ones, those that it routes."""
    return sum(100 - _routes(router, domain, longest=longest)[None] for domain in (7, 8) for longest in (12, 40))


def test_prompts_find_their_domains_and_others_stay_away() -> None:
    router = _taught(range(3))
    for domain in range(3):
        routes = _routes(router, domain)
        assert set(routes) <= {f"d{domain}", None}
        assert routes[f"d{domain}"] >= 85
    assert _num_taken(router) <= 10


def test_one_domain_alone_does_not_take_all_prompts() -> None:
    router = _taught([0])
    assert _routes(router, 0)["d0"] >= 85
    assert _num_taken(router) <= 10


def _guesses(domain: _Domain, score: float) -> bool:
    return domain.num_prompts > 0


def _equal(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ones(shares.shape[1])


@pytest.mark.parametrize(("where", "name", "mutant"), [(_Domain, "takes", _guesses), (module, "_weights", _equal)])
def test_a_router_without_one_of_its_parts_takes_what_is_not_its_own(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, mutant: Callable[..., Any]
) -> None:
    monkeypatch.setattr(where, name, mutant)
    assert _num_taken(_taught(range(3))) > 40


def test_domains_that_cannot_be_told_apart_stay_with_the_base_drafter() -> None:
    router = DomainRouter()
    for number, prompt in enumerate(_prompts(0, 200, seed=1)):
        router.learn(f"same{number % 2}", prompt)
    assert _routes(router, 0) == {None: 100}


def test_it_waits_for_enough_prompts() -> None:
    assert DomainRouter().route((1, 2, 3)) is None
    prompts = _prompts(0, 32, seed=1)
    router = DomainRouter()
    for prompt in prompts[:-1]:
        router.learn("d0", prompt)
    assert router.route(prompts[0]) is None
    router.learn("d0", prompts[-1])
    assert router.route(prompts[0]) == "d0"


def test_a_domain_that_comes_later_does_not_open_the_others_to_all_prompts() -> None:
    """What all of the first domain's prompts have in common says nothing until there is a second one."""
    router = _taught([0])
    for prompt in _prompts(1, 60, seed=1):
        router.learn("d1", prompt)
    assert _routes(router, 0) == {None: 100}
    for domain in (0, 1):
        for prompt in _prompts(domain, 20, seed=5):
            router.learn(f"d{domain}", prompt)
    assert _routes(router, 0)["d0"] >= 80 and _routes(router, 1)["d1"] >= 80
    assert _num_taken(router) <= 10


def test_a_domain_may_change() -> None:
    router = _taught(range(2))
    for _ in range(3):
        for prompt in _prompts(5, 400, seed=3):
            router.learn("d0", prompt)
    assert _routes(router, 5)["d0"] >= 85
    assert _routes(router, 1)["d1"] >= 85


def test_its_memory_is_bounded() -> None:
    router = DomainRouter()
    tracemalloc.start()
    for domain in range(200):
        router.learn(f"d{domain}", (domain, 2**31 - 1, 5))
    used_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(router.num_prompts) == [f"d{domain}" for domain in range(136, 200)]
    assert used_bytes < 64 * NUM_FEATURES * 4 + (1 << 20)


def test_of_a_long_prompt_both_ends_count() -> None:
    assert looked_at(range(10_000)) == (*range(256), *range(9744, 10_000))
    assert looked_at([3, 1]) == (3, 1)
    router = DomainRouter()
    assert router.route(()) is None
    router.learn("a", ())
    assert router.num_prompts == {}
