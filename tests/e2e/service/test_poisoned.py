"""Records that should not be learnt from come in by HTTP and by the stream: other clients' answers get no slower."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import numpy as np
import pytest
import redis

from osd.io.codec import encode
from tests.e2e.conftest import Service, run_service, service_config
from tests.kit.saved_models import save_llama
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]
_MOST_LOSS = 0.02
_NUM = 16


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Of this test alone, since it spoils what the trainer has."""
    folder = tmp_path_factory.mktemp("poisoned")
    yield from run_service(service_config(folder / "state", save_llama(folder / "tiny", context_tokens=4096)))


def _random_tokens(service: Service) -> None:
    rng = random.Random(0)
    for _ in range(_NUM):
        prompt = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=20))
        service.openai.completions.create(
            model=service.model, prompt=prompt, max_tokens=40, temperature=2, extra_body={"ignore_eos": True}
        )


def _one_query_repeated(service: Service) -> None:
    for _ in range(_NUM):
        service.answer("again and again")


def _a_tenant_floods(service: Service) -> None:
    for number in range(2 * _NUM):
        service.answer(f"tenant's question number {number}", osd={"domain": "tenant"})


def _not_finite(service: Service) -> None:
    """As an engine whose arithmetic overflowed might write them."""
    assert service.topology.redis is not None
    clean = [outcome for outcome in service.outcomes() if outcome.domain == "default"]
    with redis.Redis.from_url(service.topology.redis.url) as client:
        for number in range(_NUM):
            outcome = clean[number % len(clean)]
            spoilt = np.full(len(outcome.hidden) // 2, 0x7FC0, dtype="<u2").tobytes()  # bfloat16's NaN
            record = msgspec.structs.replace(outcome, request_id=f"nan-{number}", hidden=spoilt)
            client.xadd(service.topology.config.outcomes.stream, {"outcome": encode(record)})


def _acceptance(service: Service) -> float:
    return service.acceptance(store=False)


def _num_decisions(service: Service) -> int:
    return len(service.events("publish")) + len(service.events("refuse"))


def _has_decided(service: Service, decided: int) -> bool:
    service.acceptance()  # other clients go on
    return _num_decisions(service) > decided


def _is_no_worse(service: Service, before: float) -> bool:
    return _acceptance(service) >= before - _MOST_LOSS


def test_what_others_get_is_no_worse_after_one_decision_of_the_gate(service: Service) -> None:
    def learnt() -> bool:
        return service.acceptance() > max(0.6, service.untrained_acceptance + 0.2)

    wait_for(learnt, "the drafter to learn six answers", timeout_s=240)
    poisons: list[Callable[[Service], None]] = [_random_tokens, _one_query_repeated, _not_finite, _a_tenant_floods]
    for poison in poisons:
        before, decided = _acceptance(service), _num_decisions(service)
        poison(service)  # at once, and faster than the trainer reads
        wait_for(partial(_has_decided, service, decided), f"a decision of the gate after {poison.__name__}")
        wait_for(
            partial(_is_no_worse, service, before),
            f"no less than {before:.3f} - {_MOST_LOSS} of six other prompts to be accepted after {poison.__name__}",
        )
    assert service.status()["trainer"]["message"] == ""
