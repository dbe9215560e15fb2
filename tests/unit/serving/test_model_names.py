from __future__ import annotations

import pytest

from osd.config.settings import ConfigError, load_config
from tests.kit.fakes import FakeCodec
from tests.kit.http_client import CHAT, COMPLETION, http_client


async def test_one_model_by_several_names() -> None:
    async with http_client(server={"model_names": ["gpt-x", "a/b"]}) as client:
        cards = (await client.get("/v1/models")).json()["data"]
        assert [(card["id"], card["root"]) for card in cards] == [("gpt-x", "fake-model"), ("a/b", "fake-model")]
        assert (await client.get("/v1/models/a/b")).json()["id"] == "a/b"
        for name in ("gpt-x", "a/b"):
            for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
                answer = await client.post(path, json={**body, "model": name})
                assert answer.json()["model"] == name
        refused = await client.post("/v1/chat/completions", json=CHAT)
    assert refused.status_code == 404 and "'gpt-x', 'a/b'" in refused.json()["error"]["message"]


async def test_a_revision_need_not_be_named() -> None:
    async with http_client(codec=FakeCodec(model_id="a/b@v1"), target={"revision": "v1"}) as client:
        assert [card["id"] for card in (await client.get("/v1/models")).json()["data"]] == ["a/b@v1", "a/b"]
        for name in ("a/b@v1", "a/b"):
            assert (await client.post("/v1/completions", json={**COMPLETION, "model": name})).status_code == 200


def test_a_name_is_not_blank() -> None:
    with pytest.raises(ConfigError, match="server.model_names"):
        load_config(flags={"server": {"model_names": [" "]}})
