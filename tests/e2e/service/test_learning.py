"""The loop closes: what is served is learnt, published, swapped in; what is bad is rolled back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.e2e.conftest import Service, run_service, service_config
from tests.kit.saved_models import save_llama
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Of these tests alone: what a random target answers to one prompt says nothing of another.

    So held-out answers to other tests' prompts would rightly keep the gate from publishing what is learnt here.
    """
    folder = tmp_path_factory.mktemp("learning")
    yield from run_service(service_config(folder / "state", save_llama(folder / "tiny", context_tokens=4096)))


def _engine(service: Service) -> dict[str, Any]:
    engine: dict[str, Any] = service.status()["engine"]
    return engine


def _versions(service: Service) -> dict[str, Any]:
    versions: dict[str, Any] = service.status()["versions"]
    return versions


def _trainer_state(service: Service) -> str:
    """As it said last."""
    return str((service.status()["trainer"] or {}).get("state"))


def _pause(service: Service) -> None:
    # Else it may be seen before the trainer has even heard that it may train, and it publishes once more after that.
    wait_for(lambda: _trainer_state(service) != "paused", "the trainer to go on")
    service.train(paused=True)
    wait_for(lambda: _trainer_state(service) == "paused", "the trainer to stop")


def test_acceptance_rises_with_use_and_a_scrambled_drafter_is_rolled_back(service: Service) -> None:
    service.train(paused=False)
    # Else the pause below may be seen before the trainer has even heard of this, and it publishes once more after that.
    wait_for(lambda: _trainer_state(service) != "paused", "the trainer to go on")

    def learnt() -> bool:
        return service.acceptance() > max(0.6, service.untrained_acceptance + 0.2)

    wait_for(learnt, "the drafter to learn six answers", timeout_s=240)
    service.train(paused=True)
    wait_for(lambda: _trainer_state(service) == "paused", "the trainer to stop")
    store = service.store()
    good = store.latest()
    assert good is not None and good.number > 1
    wait_for(lambda: _engine(service)["drafter_version"] == good.number, "the newest version to serve")
    for _ in range(3):
        service.acceptance()  # rounds to compare with, of queries that differ
    _, state = store.load(good.number)
    generator = torch.Generator().manual_seed(0)
    scrambled = {
        name: tensor
        if name == "vocab_ids_R"
        else tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view_as(tensor)
        for name, tensor in state.items()
    }
    bad = store.publish(scrambled, kind=good.kind, config=good.config, parent=good.number, note="scrambled")
    wait_for(lambda: _engine(service)["drafter_version"] == bad.number, "the scrambled version to serve")
    try:
        wait_for(
            lambda: service.acceptance() >= 0 and _engine(service)["drafter_version"] == good.number,
            "the scrambled version to be rolled back",
        )
    except AssertionError as error:
        newest = service.admin.get("/admin/api/events").text[-4000:]
        raise AssertionError(f"{error}: good {good.number}, bad {bad.number}, {_engine(service)}, {newest}") from error
    assert any(event["data"].get("version") == bad.number for event in service.events("roll_back"))
    assert next(m for m in store.list() if m.number == bad.number).rolled_back
    assert service.acceptance() > 0.5
    service.train(paused=False)


def test_an_operator_rolls_back_over_http(service: Service) -> None:
    _pause(service)
    store = service.store()
    good = store.latest()
    assert good is not None
    _, state = store.load(good.number)
    copy = store.publish(state, kind=good.kind, config=good.config, parent=good.number, note="the same again")
    wait_for(lambda: _engine(service)["drafter_version"] == copy.number, "the copy to serve")
    before = _versions(service)

    def roll_back(to: int) -> tuple[int, dict[str, Any]]:
        answer = service.admin.post("/admin/api/roll_back", json={"to": to, "reason": "testing"})
        return answer.status_code, answer.json()

    status, body = roll_back(copy.number + 1)
    assert status == 404 and body["error"]["message"] == f"there is no drafter version {copy.number + 1}"
    status, body = roll_back(copy.number)
    assert status == 409 and "the latest already" in body["error"]["message"]
    status, body = roll_back(good.number)
    assert status == 200 and body["number"] == good.number
    wait_for(lambda: _engine(service)["drafter_version"] == good.number, "the version before to serve")
    after = _versions(service)
    for name in ("roll_backs", "manual_roll_backs"):
        assert after[name] == before[name] + 1
    message = f"drafter version {copy.number} -> {good.number}, by hand: testing"
    assert message in [event["message"] for event in service.events("roll_back")]
    service.train(paused=False)
