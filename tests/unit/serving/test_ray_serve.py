"""Arguments of the Ray Serve application are osd's settings, but for those that are Serve's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from osd.config.settings import ConfigError
from osd.records.errors import EngineUnavailableError
from osd.records.status import ServiceStatus
from serving.ray_serve import learn_context, of_replica, settings_of
from tests.kit.fake_status import fake_service
from tests.kit.fakes import FakeCodec, FakeEngineClient


def test_arguments_are_settings() -> None:
    config = settings_of({"state_dir": "/state", "engine": {"max_slots": 3}, "outcomes": {"redis_url": "redis://r"}})
    assert (str(config.state_dir), config.engine.max_slots, config.outcomes.redis_url) == ("/state", 3, "redis://r")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"engine": {"max_slot": 3}}, "unknown setting 'engine.max_slot'"),
        (
            {"server": {"port": 8000}},
            "'server.port' has no effect under Ray Serve .Serve's http_options hold it.; remove",
        ),
        ({"server": {"host": "::"}}, "'server.host' has no effect"),
        ({"cluster": {"address": "auto"}}, "'cluster.address' has no effect .* it is the cluster|is the cluster"),
    ],
)
def test_what_cannot_be_honoured_is_refused(args: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_of(args)


def test_one_replica_of_several_stores_no_responses() -> None:
    alone, several = (of_replica(settings_of({"cluster": {"num_ingress": num}})) for num in (1, 2))
    assert alone.server.stored_responses_bytes == settings_of({}).server.stored_responses_bytes > 0
    assert several.server.stored_responses_bytes == 0


class _StartingEngine(FakeEngineClient):
    """Does not answer at first, and then without the engine's own status."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[ServiceStatus | None] = [None, replace(fake_service(), engine=None), fake_service()]

    async def status(self) -> ServiceStatus:
        answer = self.answers.pop(0)
        if answer is None:
            raise EngineUnavailableError("it starts")
        return answer


async def test_the_ingress_learns_how_long_queries_may_be() -> None:
    codec, engine = FakeCodec(context_tokens=4096), _StartingEngine()
    await learn_context(engine, codec, retry_s=0.001)
    assert codec.context_tokens == 128 and not engine.answers
