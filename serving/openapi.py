"""Additions to FastAPI's OpenAPI schema: errors, streams and security schemes."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from osd.config.settings import Config
from serving.messages.answers import AnthropicError, MessageEvent
from serving.responses.answers import ResponseEvent
from serving.wire.answers import ChatCompletionChunk, CompletionChunk, ErrorAnswer

API_KEY, ADMIN_TOKEN, ADMIN_SESSION = "ApiKey", "AdminToken", "AdminSession"
Responses = dict[int | str, dict[str, Any]]

_NAMED = (ErrorAnswer, ChatCompletionChunk, CompletionChunk, AnthropicError, MessageEvent, ResponseEvent)
"""Models that responses only refer to by name."""
_REF = "#/components/schemas/{model}"
_SECURITY_SCHEMES = {
    API_KEY: {"type": "http", "scheme": "bearer", "description": "One of those in server.api_keys_sha256."},
    ADMIN_TOKEN: {"type": "http", "scheme": "bearer"},
    ADMIN_SESSION: {
        "type": "apiKey",
        "in": "cookie",
        "name": "osd_admin",
        "description": "Opened by /admin/api/login; changes also need the header X-OSD-Admin.",
    },
}
_MEANINGS = {
    400: "A field is missing, unknown, unfit or not supported; `param` names it.",
    401: "The key or token is wrong or missing.",
    403: "The header X-OSD-Admin is needed beside a session's cookie.",
    404: "There is no such model or drafter version, or the route is switched off.",
    408: "The request did not arrive in time.",
    409: "The drafter version serves already, was rolled back, is torn, or was refused by the engine.",
    413: "The request body is too large.",
    429: "Too many queries wait, or too many wrong keys or tokens came from this address.",
    500: "A fault of the server, whose log has the details.",
    503: "The engine is starting, restarting or gone.",
    504: "The answer took too long.",
}
_HEADERS = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}},
    429: {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds.", "required": True}},
    503: {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds.", "required": True}},
}


def anthropic_errors(*statuses: int) -> Responses:
    """Error responses of a route of Anthropic's API."""
    return errors(*statuses, model=AnthropicError)


def errors(*statuses: int, model: type = ErrorAnswer) -> Responses:
    """Error answers for `responses=` of a router or a route."""
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}},
            **({"headers": _HEADERS[status]} if status in _HEADERS else {}),
        }
        for status in statuses
    }


def whole_or_streamed(whole: type, chunk: type) -> Responses:
    """A 200 answer that is JSON, or an event stream if the request asks for one."""
    events = {"text/event-stream": {"schema": {"$ref": _REF.format(model=chunk.__name__)}}}
    return {200: {"model": whole, "content": events}}


class Api(FastAPI):
    """FastAPI with errors, event streams and security schemes in its schema, and without 422, which is never sent."""

    _is_amended = False

    def __init__(self, config: Config, **settings: Any) -> None:
        super().__init__(**settings)
        self.config = config

    def openapi(self) -> dict[str, Any]:
        """The schema; built once."""
        schema = super().openapi()
        if not self._is_amended:
            self._is_amended = True
            self._amend(schema)
        return schema

    def _amend(self, schema: dict[str, Any]) -> None:
        schema["info"]["version"] = version("osd")
        server = self.config.server
        if server.metrics_access == "off":
            del schema["paths"]["/metrics"]
        elif server.metrics_access != "open":
            scheme = {"api_key": API_KEY, "admin": ADMIN_TOKEN}[server.metrics_access]
            schema["paths"]["/metrics"]["get"]["security"] = [{scheme: []}]
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                if not server.api_keys_sha256 and {API_KEY: []} in operation.get("security", ()):
                    del operation["security"]
        components = schema["components"]
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        _, named = models_json_schema([(model, "serialization") for model in _NAMED], ref_template=_REF)
        components["schemas"].update(named["$defs"])
        components["securitySchemes"] = _SECURITY_SCHEMES
