"""Errors as a client gets them: one shape, whatever was wrong, that a program can read."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.context import request_id
from serve.schemas import ErrorBody, ErrorResponse
from xrec.serving.queries import RequestError

_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    500: "internal_error",
}
# What a route may answer beside its own response, for the OpenAPI document. A failure of the server's own is not among
# them: nobody should count on one.
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "The request is not HTTP, or not JSON, as it should be.",
        401: "The key is missing or wrong.",
        404: "The dataset, user or item is unknown.",
        413: "The body is too large.",
        415: "The body is not declared as JSON.",
        422: "A field is wrong.",
        429: "The key's rate is used up; see Retry-After.",
        503: "The server has too much to do; see Retry-After.",
        504: "The deadline has passed.",
    }.items()
}

# Those that can answer with a stream instead.
STREAMING: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {}},
        "description": "The answer; with `stream`, server-sent events.",
    }
}


def body(error: RequestError) -> ErrorResponse:
    """What is sent for an error."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return ErrorResponse(
        error=ErrorBody(code=error.code, message=error.message, field=error.field, request_id=request_id(), type=kind)
    )


def response(error: RequestError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The error as an HTTP response."""
    return JSONResponse(body(error).model_dump(), error.status, dict(headers or {}))


def add_handlers(app: FastAPI, retry_after_seconds: int) -> None:
    """Give every failure of an app's routes the one shape."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        request.state.code = error.code
        return response(error, {"Retry-After": str(retry_after_seconds)} if error.status == 503 else None)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        request.state.code = "invalid_request"
        return response(describe(error.errors()))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        request.state.code = "internal_error"
        return response(internal())

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "http_error")
        request.state.code = code
        return response(RequestError(error.status_code, code, str(error.detail)), error.headers)


def internal() -> RequestError:
    """What a client is told of a failure of the server's own: where to look, not what it holds."""
    return RequestError(500, "internal_error", "the server has failed; its log says why, under this request's id")


def describe(problems: Sequence[Any]) -> RequestError:
    """The first of pydantic's problems, by its field."""
    first = problems[0]
    if first["type"] == "json_invalid":
        return RequestError(422, "invalid_json", f"the body is not JSON: {first['ctx']['error']}")
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    field = ".".join(place) or None
    more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
    return RequestError(422, "invalid_request", f"{field or 'the body'}: {first['msg']}{more}", field)
