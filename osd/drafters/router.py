"""Guesses the domain of a prompt that names none from the prompts that do: an online naive Bayes classifier.

A prompt is the set of its tokens (of a long one: its first and last ones), hashed to F features. A share p of a
domain's prompts contains a feature; recent prompts weigh more. A prompt's score in a domain is the mean of log p over
its features, each weighted by its inverse document frequency (Spärck Jones 1972), that is, -log of the mean of p over
the domains. So what all prompts have in common, a chat template say, does not count.

A classifier always names a class. Two tests keep this one from guessing:

* The prompt has to score as well as the domain's own prompts did when they came, all but the worst twentieth of them (a
  conformal test, Vovk, Gammerman and Shafer 2005). So prompts of no known domain stay away.
* Of the latest labelled prompts that would have been routed to the domain, nearly all were of it.

`river.naive_bayes` was measured first: see docs/adaptation.md.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NUM_FEATURES = 1 << 14
"""F."""
_HEAD_TOKENS = _TAIL_TOKENS = 256
"""Of a longer prompt, so many first and last tokens are looked at: instructions, and the question."""
_MOST_DOMAINS = 64
_HALF_LIFE_PROMPTS = 1000.0
"""Number of later prompts of the same domain after which a prompt counts half."""
_PRIOR_PROMPTS = 0.03
"""A domain starts with so many prompts that contain a feature, and so many that do not: no share is 0 or 1."""
_LEAST_PROMPTS = 16
"""Of a domain, before prompts are compared with it; and as many more, before any is routed to it."""
_RECENT = 64
_WORST_SHARE = 0.05
_LEAST_RIGHT = 0.95

Features = NDArray[np.intp]


@dataclass(slots=True)
class _Domain:
    """What is known of one domain's prompts."""

    counts_F: NDArray[np.float32] = field(default_factory=lambda: np.zeros(NUM_FEATURES, np.float32))
    """Prompts that contain a feature."""
    weight: float = 0.0
    """Prompts, of which old ones count less."""
    num_prompts: int = 0
    scores: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    """Of its own latest prompts, each before it was learnt, and among the same known domains as now."""
    right: deque[bool] = field(default_factory=lambda: deque(maxlen=_RECENT))
    """Of the latest labelled prompts that would have been routed here: whether they were of this domain."""

    def learn(self, features: Features) -> None:
        """Add one prompt."""
        fading = 0.5 ** (1.0 / _HALF_LIFE_PROMPTS)
        self.counts_F *= fading
        self.counts_F[features] += 1.0
        self.weight = self.weight * fading + 1.0
        self.num_prompts += 1

    def shares(self, features: Features) -> NDArray[np.float64]:
        """The share of the domain's prompts that have each of these features."""
        return (self.counts_F[features].astype(np.float64) + _PRIOR_PROMPTS) / (self.weight + 2 * _PRIOR_PROMPTS)

    def takes(self, score: float) -> bool:
        """Whether a prompt with this score, its highest in any domain, resembles the domain's own."""
        return len(self.scores) >= _LEAST_PROMPTS and score >= float(np.quantile(self.scores, _WORST_SHARE))

    @property
    def is_known(self) -> bool:
        """Whether enough of its prompts are known to compare others with them."""
        return self.num_prompts >= _LEAST_PROMPTS

    @property
    def is_reliable(self) -> bool:
        """Whether prompts that were routed here belonged here."""
        return sum(self.right) >= _LEAST_RIGHT * len(self.right)


class DomainRouter:
    """Learns from labelled prompts, and guesses the domain of others. Any thread may call any method.

    Memory: about 64 KiB a domain, of at most 64; the one that was not learnt from for longest is forgotten.
    """

    def __init__(self) -> None:
        self._domains: dict[str, _Domain] = {}
        """The least recently learnt first."""
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def learn(self, domain: str, prompt_ids: Sequence[int]) -> None:
        """Learn from a prompt whose domain is known."""
        if not prompt_ids:
            return
        features = _features(prompt_ids)
        with self._lock:
            scores = self._scores(features)
            guess = max(scores, key=scores.__getitem__, default=None)
            if guess is not None and self._domains[guess].takes(scores[guess]):
                self._domains[guess].right.append(guess == domain)
            learning = self._domains.pop(domain, None) or _Domain()
            self._domains[domain] = learning
            if domain in scores:
                learning.scores.append(scores[domain])
            learning.learn(features)
            if len(self._domains) > _MOST_DOMAINS:
                del self._domains[next(iter(self._domains))]
            self._renew_scores()

    def route(self, prompt_ids: Sequence[int]) -> str | None:
        """The domain of a prompt; None where that is not clear."""
        if not prompt_ids:
            return None
        features = _features(prompt_ids)
        with self._lock:
            scores = self._scores(features)
            guess = max(scores, key=scores.__getitem__, default=None)
            if guess is None:
                return None
            domain = self._domains[guess]
            return guess if domain.is_reliable and domain.takes(scores[guess]) else None

    @property
    def num_prompts(self) -> dict[str, int]:
        """Prompts learnt by domain, the least recently learnt domain first."""
        with self._lock:
            return {name: domain.num_prompts for name, domain in self._domains.items()}

    def _scores(self, features: Features) -> dict[str, float]:
        """A prompt's score in each known domain."""
        known = {name: domain for name, domain in self._domains.items() if domain.is_known}
        if not known:
            return {}
        shares_DN = np.stack([domain.shares(features) for domain in known.values()])
        weights_N = _weights(shares_DN)
        scores_D = np.log(shares_DN) @ weights_N / max(float(weights_N.sum()), 1e-9)
        return dict(zip(known, scores_D.tolist(), strict=True))

    def _renew_scores(self) -> None:
        """Where the known domains have changed, features weigh differently, and earlier scores say nothing any more."""
        known = {name for name, domain in self._domains.items() if domain.is_known}
        if known != self._known:
            self._known = known
            for domain in self._domains.values():
                domain.scores.clear()


def looked_at(prompt_ids: Sequence[int]) -> tuple[int, ...]:
    """The tokens of a prompt that a router looks at: all, or the first and last ones."""
    if len(prompt_ids) <= _HEAD_TOKENS + _TAIL_TOKENS:
        return tuple(prompt_ids)
    return (*prompt_ids[:_HEAD_TOKENS], *prompt_ids[-_TAIL_TOKENS:])


def _weights(shares_DN: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each of N features says, by its share in each of D domains."""
    weights_N: NDArray[np.float64] = -np.log(shares_DN.mean(axis=0))
    return weights_N


def _features(prompt_ids: Sequence[int]) -> Features:
    """A prompt's features, each once."""
    return np.unique(np.asarray(looked_at(prompt_ids), dtype=np.intp) % NUM_FEATURES)
