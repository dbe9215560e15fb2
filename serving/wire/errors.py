"""All errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from osd.monitor.alerts import UnknownAlertError
from osd.monitor.answer import BadRangeError
from osd.monitor.wishes import BadWishError
from osd.records.errors import (
    ConstraintRefusedError,
    EngineUnavailableError,
    OsdError,
    PromptTooLongError,
    QueueFullError,
    UnknownVersionError,
    WeightsRefusedError,
)
from serving.route_path import route_path
from serving.wire.inert_fields import UNSUPPORTED, known_fields

log = logging.getLogger(__name__)

QUEUE_FULL_RETRY_S = 1
UNAVAILABLE_RETRY_S = 5
CLIENT_CLOSED_REQUEST = 499
NO_RETRY = {"x-should-retry": "false"}
"""Keeps the official clients, which send a query again after any 5xx, from doing so where that cannot help."""
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_LONGEST_MESSAGE_CHARS = 1000
_NEAR = 0.8
"""Similarity (difflib's) from which a field is taken for a misspelt one."""
_NO_JSON = "The request body must be a JSON object in UTF-8, sent as application/json."


class ApiError(Exception):
    """An error answer for the client.

    Example: `ApiError(400, "'n' must be at least 1", param="n", code="invalid_value")`
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error's JSON."""
        return {
            "error": {
                "message": _printable(self.message),
                "type": _error_type(self.status),
                "param": None if self.param is None else _printable(self.param),
                "code": self.code,
            }
        }

    def anthropic_body(self) -> dict[str, Any]:
        """The shape that Anthropic's clients read. Its messages have no `param`, so the text names the field."""
        kind = _ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": _printable(self.message)}}


def error_response(error: ApiError, scope: Scope) -> JSONResponse:
    """The whole answer, in the shape of the API that the request is of."""
    is_anthropic = route_path(scope).startswith("/v1/messages")
    body = error.anthropic_body() if is_anthropic else error.body()
    return JSONResponse(body, status_code=error.status, headers=error.headers)


def internal_error() -> ApiError:
    """The answer to an unexpected exception; it discloses nothing about it."""
    return ApiError(500, "Internal server error; the server's log has the details.", code="internal_error")


def took_too_long(timeout_s: float) -> ApiError:
    """The answer to a query that reached `server.request_timeout_s`; a repeated one would reach it, too."""
    return ApiError(504, f"The answer took longer than {timeout_s:g} s.", code="timeout", headers=NO_RETRY)


def to_api_error(error: Exception) -> ApiError:
    """Translate an engine error; an unknown exception is logged and becomes a 500 without details."""
    match error:
        case ApiError():
            return error
        case PromptTooLongError():
            return ApiError(400, str(error), param="prompt", code="context_length_exceeded")
        case ConstraintRefusedError():
            return ApiError(400, str(error), param=error.field, code="invalid_value")
        case QueueFullError():
            return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(QUEUE_FULL_RETRY_S)})
        case EngineUnavailableError():
            retry = {"Retry-After": str(UNAVAILABLE_RETRY_S)}
            return ApiError(503, str(error), code="engine_unavailable", headers=retry)
        case BadWishError():
            return ApiError(400, str(error), code="invalid_value")
        case BadRangeError():
            return ApiError(400, str(error), code="bad_range")
        case UnknownAlertError():
            return ApiError(404, str(error), param="name", code="alert_not_found")
        case UnknownVersionError():
            return ApiError(404, str(error), param="to", code="version_not_found")
        case WeightsRefusedError():
            return ApiError(409, str(error), code="weights_refused")
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return internal_error()


def from_validation(problems: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """The first problem that pydantic found in the body or query, named by the field as the client wrote it."""
    problem = problems[0]
    kind = problem["type"]
    if kind == "json_invalid":
        return ApiError(400, f"The request body is not valid JSON: {problem['ctx']['error']}.", code="invalid_json")
    param = _param(problem["loc"], body)
    if param is None:
        return ApiError(400, _NO_JSON, code="invalid_json")
    if kind == "extra_forbidden":
        name, known = str(problem["loc"][-1]), known_fields()
        near = [] if name in known else get_close_matches(name, known, n=1, cutoff=_NEAR)  # known: of another object
        fix = f"did you mean '{near[0]}'?" if near else "leave it out."
        return ApiError(400, f"Unknown or unsupported field '{param}'; {fix}", param=param, code="unknown_parameter")
    if kind == UNSUPPORTED:
        return ApiError(400, f"'{param}' {problem['msg']}.", param=param, code="unsupported_parameter")
    if kind == "missing":
        return ApiError(400, f"'{param}' is required.", param=param, code="missing_required_parameter")
    message = str(problem["msg"]).removeprefix("Value error, ")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return ApiError(400, f"Invalid '{param}': {message}.", param=param, code=code)


def install_error_handlers(app: FastAPI) -> None:
    """Answer all expected exceptions in OpenAI's shape; `serving.observing.observe` handles unexpected ones."""

    async def on_domain_error(request: Request, error: Exception) -> Response:
        return error_response(to_api_error(error), request.scope)

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(from_validation(error.errors(), error.body), request.scope)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status, path = error.status_code, request.url.path
        message, code = {
            400: (_NO_JSON, "invalid_json"),  # FastAPI could not decode the body, for instance as UTF-8
            404: (f"There is no {path} here.", "unknown_url"),
            405: (f"{request.method} is not allowed on {path}.", "method_not_supported"),
        }.get(status, (str(error.detail), HTTPStatus(status).name.lower()))
        return error_response(ApiError(status, message, code=code, headers=error.headers), request.scope)

    async def on_disconnect(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    app.add_exception_handler(ApiError, on_domain_error)
    app.add_exception_handler(OsdError, on_domain_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(ClientDisconnect, on_disconnect)


def _error_type(status: int) -> str:
    match status:
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case _ if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "server_error"
    return "invalid_request_error"


def _param(location: Sequence[str | int], body: Any) -> str | None:
    """('body', 'messages', 0, 'content', 'str') as 'messages[0].content'; None if it names no field.

    Steps that are not in the body come from pydantic (a union's member, a list around a single value), and are left
    out.
    """
    source, *steps = location
    if source != "body":
        return ".".join(map(str, steps)) or None
    value, path = body, ""
    for number, step in enumerate(steps, start=1):
        is_field = isinstance(value, dict) and (step in value or number == len(steps))  # a missing field comes last
        if isinstance(step, str) and is_field:
            value, path = value.get(step), f"{path}.{step}"
        elif isinstance(step, int) and isinstance(value, list) and step < len(value):
            value, path = value[step], f"{path}[{step}]"
    return path.removeprefix(".") or None


def _printable(text: str) -> str:
    """Limited in length and encodable, whatever characters a client put into a field's name."""
    return text.encode(errors="replace").decode()[:_LONGEST_MESSAGE_CHARS]
