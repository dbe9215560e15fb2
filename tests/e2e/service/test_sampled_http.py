"""Sampled answers over HTTP follow the target's own distribution, with a drafter version swapped in half way.

The tokens are read from the outcome stream; their joint distribution is enumerated through the plain model.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from osd.loading.causal_lm import load_causal_lm
from tests.e2e.conftest import Service
from tests.kit.waiting import wait_for
from tests.statistical.emission import ALARM
from tests.statistical.exact import pearson

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(240)]
_PROMPT = (5, 80, 33, 12)
_TOKENS, _TOP_K, _TEMPERATURE = 3, 4, 0.8
_REQUESTS, _CHOICES = 100, 8
_DOMAIN = "sampled"


@torch.no_grad()
def _joint_probs(service: Service) -> dict[tuple[int, ...], float]:
    """The probability of each answer that the target may give, by plain passes."""
    model = load_causal_lm(service.topology.resolved.folder, dtype=torch.float32, device=torch.device("cpu"))
    joint: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(_TOKENS):
        longer = {}
        for ids, prob in joint.items():
            logits_V = model(input_ids=torch.tensor([[*_PROMPT, *ids]]), use_cache=False).logits[0, -1]
            kept = logits_V.topk(_TOP_K)
            probs = torch.softmax(kept.values.double() / _TEMPERATURE, dim=-1)
            for token, share in zip(kept.indices.tolist(), probs.tolist(), strict=True):
                longer[(*ids, token)] = prob * share
        joint = longer
    return joint


def test_sampled_answers_follow_the_targets_distribution(service: Service) -> None:
    service.train(paused=True)

    def ask(number: int) -> None:
        service.openai.completions.create(
            model=service.model,
            prompt=list(_PROMPT),
            n=_CHOICES,
            max_tokens=_TOKENS + 1,
            temperature=_TEMPERATURE,
            seed=_CHOICES * number,
            extra_body={
                "top_k": _TOP_K,
                "ignore_eos": True,
                "osd": {"domain": _DOMAIN, "speculation_length": number % 4},
            },
        )

    before = service.outcome_counts()["recorded"]
    store = service.store()
    latest = store.latest()
    assert latest is not None
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(_REQUESTS // 2)))
        _, state = store.load(latest.number)
        copy = store.publish(state, kind=latest.kind, config=latest.config, parent=latest.number, note="the same again")
        list(pool.map(ask, range(_REQUESTS // 2, _REQUESTS)))
    wait_for(lambda: service.outcome_counts()["recorded"] == before + _REQUESTS * _CHOICES, "every outcome")
    assert service.status()["engine"]["drafter_version"] == copy.number
    outcomes = [outcome for outcome in service.outcomes() if outcome.domain == _DOMAIN]
    seen = Counter(outcome.output_ids[:_TOKENS] for outcome in outcomes)
    assert seen.total() == _REQUESTS * _CHOICES
    assert sum(kept for outcome in outcomes for kept in (one.accepted for one in outcome.rounds)) > 0
    joint = _joint_probs(service)
    assert seen.keys() <= joint.keys()
    figure = pearson([seen[ids] for ids in joint], [_REQUESTS * _CHOICES * prob for prob in joint.values()])
    assert figure > ALARM
