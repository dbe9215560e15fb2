"""Requests that schemathesis makes from /openapi.json: no 5xx, and every answer by its schema.

Runs where schemathesis is installed (docs/clients.md).
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from osd.config.settings import load_config
from osd.text.chat_template import ChatFeatures
from serving.app import create_app
from tests.kit.fake_status import fake_service
from tests.kit.fakes import FakeCodec, FakeEngineClient

schemathesis: Any = pytest.importorskip("schemathesis", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("default")
_EXAMPLES = 25


def _app() -> Any:
    codec = FakeCodec(features=ChatFeatures(tools=True, calls=True, call_format="hermes"), context_tokens=4000)
    return create_app(load_config(), FakeEngineClient(service=fake_service()), codec, admin_token_sha256="")


_SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", _app())
_OPERATIONS = {
    operation.label: operation
    for found in _SCHEMA.get_all_operations()
    if "/admin/" not in (operation := found.ok()).path
}


@pytest.mark.parametrize("label", sorted(_OPERATIONS))
def test_every_answer_is_as_documented(label: str) -> None:
    checks = [
        schemathesis.checks.not_a_server_error,
        schemathesis.specs.openapi.checks.response_schema_conformance,
        schemathesis.specs.openapi.checks.status_code_conformance,
        schemathesis.specs.openapi.checks.content_type_conformance,
    ]

    @settings(max_examples=_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=_OPERATIONS[label].as_strategy())
    def check(case: Any) -> None:
        case.validate_response(case.call(), checks=checks)

    check()
