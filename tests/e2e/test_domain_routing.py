"""Unlabelled queries get the domain that labelled ones taught, in a real service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Service, run_service, service_config
from tests.kit.saved_models import save_llama
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(300)]
_SQL = [f"select * from t{number} where id = {number};" for number in range(10)]
_MAIL = [f"DEAR BOB, YOU OWE ME {number} POUNDS! YOURS, ANN" for number in range(10)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("routing")
    target = save_llama(folder / "tiny", context_tokens=4096)
    config = service_config(folder / "state", target, drafter={"max_domains": 2}, trainer={"enabled": False})
    yield from run_service(config)


def _domain(service: Service, prompt: str, **osd: str) -> str:
    """Under which a query was answered."""
    found: str = service.answer(prompt, max_tokens=4, osd=osd).osd["domain"]
    return found


def test_a_query_without_a_domain_goes_to_that_of_its_like(service: Service) -> None:
    assert _domain(service, _SQL[0]) == "default"
    for pair in 4 * list(zip(_SQL, _MAIL, strict=True)):
        for prompt, domain in zip(pair, ("sql", "mail"), strict=True):
            assert _domain(service, prompt, domain=domain) == domain
    wait_for(lambda: _domain(service, _SQL[3]) == "sql", "the router to learn eighty prompts")
    assert _domain(service, _MAIL[5]) == "mail"
    assert _domain(service, "42 + 7 / 3 - 1 ^ 8 % 2") == "default"
    assert _domain(service, _SQL[3], domain="mail") == "mail"
    status = service.status()["engine"]
    assert status["counters"]["routed_queries_total"] >= 2
    metrics = service.admin.get("/metrics").text
    assert 'osd_finished_queries_total{domain="sql",reason="length"}' in metrics
