"""Every refusal and failure in the OpenAI error shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from osd.types import EngineUnavailableError, OsdError, PromptTooLongError, QueueFullError, WeightsRefusedError
from serving.schema_inert import UNSUPPORTED

log = logging.getLogger(__name__)

QUEUE_FULL_RETRY_S = 1
UNAVAILABLE_RETRY_S = 5
CLIENT_CLOSED_REQUEST = 499
_LONGEST_MESSAGE_CHARS = 1000


class ApiError(Exception):
    """An answer other than 2xx, meant for the client.

    Example: `ApiError(400, "'n' must be at least 1", param="n")`
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The wire shape."""
        return {
            "error": {
                "message": _printable(self.message),
                "type": _error_type(self.status),
                "param": None if self.param is None else _printable(self.param),
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def internal_error() -> ApiError:
    """What a client sees of a fault of ours: nothing of its inside."""
    return ApiError(500, "Internal server error; the server's log has the details.", code="internal_error")


def to_api_error(error: Exception) -> ApiError:
    """Translate any error of the engine; an unknown one is logged and becomes a bare 500."""
    match error:
        case ApiError():
            return error
        case PromptTooLongError():
            return ApiError(400, str(error), param="prompt", code="context_length_exceeded")
        case QueueFullError():
            return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(QUEUE_FULL_RETRY_S)})
        case EngineUnavailableError():
            retry = {"Retry-After": str(UNAVAILABLE_RETRY_S)}
            return ApiError(503, str(error), code="engine_unavailable", headers=retry)
        case WeightsRefusedError():
            return ApiError(409, str(error), code="weights_refused")
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return internal_error()


def from_validation(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first problem that pydantic found, naming the field as the client wrote it."""
    problem = problems[0]
    kind, location = problem["type"], [part for part in problem["loc"] if part != "body"]
    param = _path(location)
    if kind == "json_invalid":
        return ApiError(400, f"The request body is not valid JSON: {problem['ctx']['error']}.", code="invalid_json")
    if param is None:
        return ApiError(
            400, "The request body must be a JSON object in UTF-8, sent as application/json.", code="invalid_json"
        )
    if kind == "extra_forbidden":
        return ApiError(400, f"Unknown or unsupported field '{param}'.", param=param, code="unknown_parameter")
    if kind == UNSUPPORTED:
        return ApiError(400, f"'{param}' {problem['msg']}.", param=param, code="unsupported_parameter")
    if kind == "missing":
        return ApiError(400, f"'{param}' is required.", param=param, code="missing_required_parameter")
    message = str(problem["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"Invalid '{param}': {message}.", param=param, code="invalid_value")


def install_error_handlers(app: FastAPI) -> None:
    """Answer every foreseen exception in the OpenAI shape; unforeseen ones end in `serving.observe`."""

    async def on_domain_error(_: Request, error: Exception) -> Response:
        return to_api_error(error).response()

    async def on_validation_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return from_validation(error.errors()).response()

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {
            404: f"There is no {request.url.path} here.",
            405: f"{request.method} is not allowed on {request.url.path}.",
        }.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()

    async def on_disconnect(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    app.add_exception_handler(ApiError, on_domain_error)
    app.add_exception_handler(OsdError, on_domain_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(ClientDisconnect, on_disconnect)


def _error_type(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case _ if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "server_error"
    return "invalid_request_error"


def _path(location: Sequence[str | int]) -> str | None:
    """('messages', 0, 'content') as 'messages[0].content'; None when no field is meant."""
    if not location or isinstance(location[0], int):
        return None
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _printable(text: str) -> str:
    """Bounded and encodable, whatever a client put into a field's name."""
    return text.encode(errors="replace").decode()[:_LONGEST_MESSAGE_CHARS]
