"""Three nodes; one with an engine dies under streaming load: every answer goes on elsewhere, whole."""

from __future__ import annotations

import pytest

from tests.e2e.cluster.conftest import NUM_TOKENS, PROMPTS, Deployed
from tests.kit.streaming_load import streaming_load
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(280)]


def test_answers_go_on_where_a_node_died(deployed: Deployed) -> None:
    assert [deployed.ask(prompt) for prompt in PROMPTS] == [deployed.expected[prompt] for prompt in PROMPTS]
    with streaming_load(deployed.cluster.url, deployed.model, PROMPTS, NUM_TOKENS, num_clients=6) as load:
        wait_for(lambda: load.num_open == 6, "six answers to have begun")
        deployed.cluster.do("kill_node", number=0)
        num_before = len(load.answers)
        wait_for(lambda: len(load.answers) >= num_before + 12, "answers after the node died")
    assert not load.lost(deployed.expected)
    assert {one.num_tokens for one in load.answers} == {NUM_TOKENS}
