"""`osd serve` with TLS: the official client trusts its certificate, streams, and gets JSON that keeps to a schema."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import httpx
import openai
import pytest

from tests.kit.certificates import make_certificate, needs_openssl
from tests.kit.osd_program import program, ready_url
from tests.kit.saved_models import save_llama

_SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@needs_openssl
@pytest.mark.ray
@pytest.mark.redis
@pytest.mark.slow
def test_a_service_with_a_certificate(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    model = save_llama(tmp_path / "tiny")
    options = ("--target", model, "--ssl-certfile", cert, "--ssl-keyfile", key, "--no-train")
    with program(tmp_path, *options) as process:
        url = ready_url(process)
        assert url.startswith("https://")
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"{url}/health", timeout=60)
        trusting = openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=str(cert)), timeout=60)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=trusting) as client:
            pieces = client.completions.create(model="tiny", prompt="hello", max_tokens=8, temperature=0, stream=True)
            streamed = "".join(piece.choices[0].text for piece in pieces if piece.choices)
            whole = client.completions.create(model="tiny", prompt="hello", max_tokens=8, temperature=0)
            assert streamed == whole.choices[0].text != ""
            answer = client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "hi"}],
                response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": _SCHEMA}},
                max_tokens=100,
            )
            assert json.loads(answer.choices[0].message.content or "")["a"] in (1, 2)
            assert answer.choices[0].finish_reason == "stop"
            with pytest.raises(openai.BadRequestError, match="uniqueItems"):
                client.completions.create(
                    model="tiny", prompt="x", extra_body={"guided_json": {"type": "array", "uniqueItems": True}}
                )
