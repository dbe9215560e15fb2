"""A published EAGLE-3 head in a real service: it serves as version 1, learns from the traffic, and is swapped live."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from osd.assembly.drafter import import_head, open_store
from osd.loading.resolve import resolve_target
from tests.e2e.conftest import PROMPTS, Service, run_service, service_config
from tests.kit.eagle3_heads import head_config, save_head
from tests.kit.saved_models import save_llama
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("eagle3")
    target = save_llama(folder / "tiny", context_tokens=4096)
    vocab_tokens = json.loads((target / "config.json").read_text())["vocab_size"]
    head: Path = save_head(folder / "head", head_config(vocab_size=vocab_tokens, draft_vocab_size=vocab_tokens))
    # A random head has to learn all its rows, a drafter of the kind `feature` has the target's: it takes longer, and
    # more passes over six answers.
    trainer = {"learning_rate": 1e-2, "passes": 400.0, "first_version_share": 0.0}
    config = service_config(folder / "state", target, drafter={"kind": "eagle3"}, trainer=trainer)
    resolved = resolve_target(str(target), config.state_dir)
    import_head(config, resolved, open_store(config, resolved), head)
    yield from run_service(config)


def test_it_learns_from_what_it_serves(service: Service) -> None:
    engine = service.status()["engine"]
    assert (engine["drafter_kind"], engine["drafter_version"]) == ("eagle3", 1)
    before = [service.answer(prompt, max_tokens=40).choices[0].text for prompt in PROMPTS]

    def learnt() -> bool:
        return service.acceptance() > service.untrained_acceptance + 0.2

    wait_for(learnt, "the head to learn six answers", timeout_s=400)
    assert [service.answer(prompt, max_tokens=40).choices[0].text for prompt in PROMPTS] == before
    assert service.status()["engine"]["drafter_version"] > 1 and service.events("swap")
    outcomes = service.outcomes()
    assert {outcome.drafter_kind for outcome in outcomes} == {"eagle3"}
    assert {outcome.hidden_size for outcome in outcomes} == {96}
