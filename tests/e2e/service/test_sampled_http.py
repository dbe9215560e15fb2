"""Sampled answers over HTTP follow the target's own distribution, with a drafter version swapped in half way.

The first three tokens of each answer are read from the outcome stream. Each is of one of four classes: whether the
drafter knows it, which is where a wrong accept rule shows most, and whether its id is even. The joint distribution of
the classes is computed through the plain model, from all contexts that there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from osd.loading.causal_lm import load_causal_lm
from osd.records.outcome import Outcome
from tests.e2e.conftest import Service
from tests.kit.waiting import wait_for
from tests.statistical.emission import ALARM
from tests.statistical.exact import pearson

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(280)]
_PROMPT = (5, 80, 33, 12)
_CLASSES, _TOKENS = 4, 3
_REQUESTS, _CHOICES = 100, 8
_DOMAIN = "sampled"


def _classes(known_R: Tensor, vocab_tokens: int) -> Tensor:
    """The class of each token, `[V]`."""
    ids_V = torch.arange(vocab_tokens)
    return 2 * torch.isin(ids_V, known_R) + ids_V % 2


@torch.no_grad()
def _probs(model: Any, contexts: Sequence[Sequence[int]]) -> Tensor:
    """The distribution of the next token, by plain passes, `[N, V]`."""
    ids_NL = torch.tensor(contexts)
    parts = (ids_NL[start : start + 4096] for start in range(0, len(ids_NL), 4096))
    logits = [model(input_ids=part_NL, use_cache=False, logits_to_keep=1).logits[:, -1] for part_NL in parts]
    return torch.cat(logits).double().softmax(dim=-1)


def _joint_probs(model: Any, class_V: Tensor) -> Tensor:
    """The probability of each combination of classes, `[C, C, C]`."""
    is_of_VC = torch.nn.functional.one_hot(class_V, _CLASSES).double()
    tokens = range(len(class_V))
    first_V = _probs(model, [_PROMPT])[0]
    second_VV = _probs(model, [(*_PROMPT, one) for one in tokens])
    pairs = [(*_PROMPT, one, other) for one in tokens for other in tokens]
    third_VVC = (_probs(model, pairs) @ is_of_VC).view(len(class_V), len(class_V), _CLASSES)
    of_pairs_VVC = first_V[:, None, None] * second_VV[:, :, None] * third_VVC
    return torch.einsum("vc,wd,vwe->cde", is_of_VC, is_of_VC, of_pairs_VVC)


def test_sampled_answers_follow_the_targets_distribution(service: Service) -> None:
    service.train(paused=True)

    def ask(number: int) -> None:
        service.openai.completions.create(
            model=service.model,
            prompt=list(_PROMPT),
            n=_CHOICES,
            max_tokens=_TOKENS + 1,
            temperature=1.0,
            seed=_CHOICES * number,
            extra_body={"ignore_eos": True, "osd": {"domain": _DOMAIN, "speculation_length": 1 + number % 3}},
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
    # More, where an earlier test's queries were being recorded.
    wait_for(lambda: service.outcome_counts()["recorded"] >= before + _REQUESTS * _CHOICES, "outcomes", 200)
    wait_for(lambda: len(_outcomes(service)) == _REQUESTS * _CHOICES, "every outcome of the domain")
    assert service.status()["engine"]["drafter_version"] == copy.number
    outcomes = _outcomes(service)
    ids_NT = torch.tensor([outcome.output_ids[:_TOKENS] for outcome in outcomes])
    assert ids_NT.shape == (_REQUESTS * _CHOICES, _TOKENS)
    assert sum(one.accepted for outcome in outcomes for one in outcome.rounds) > 0
    model = load_causal_lm(service.topology.resolved.folder, dtype=torch.float32, device=torch.device("cpu"))
    class_V = _classes(state["vocab_ids_R"], model.config.vocab_size)
    cells_N = (class_V[ids_NT] * torch.tensor([_CLASSES**2, _CLASSES, 1])).sum(dim=1)
    counts = torch.bincount(cells_N, minlength=_CLASSES**_TOKENS)
    expected = _joint_probs(model, class_V).flatten() * len(ids_NT)
    figure = pearson(counts.tolist(), expected.tolist())
    assert figure > ALARM


def _outcomes(service: Service) -> list[Outcome]:
    return [outcome for outcome in service.outcomes() if outcome.domain == _DOMAIN]
