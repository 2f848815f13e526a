"""Errors in OpenAI's form: every answer that is not a success has this body."""

from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError


@dataclass
class ApiError(Exception):
    """An answer with an error status.

    Attributes:
        status: of HTTP.
        message: for a person.
        code: for a program, or None.
        param: the request's field that is wrong, or None.
        headers: of the answer.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Return the body as OpenAI sends it."""
        kinds = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """Return the whole answer."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def from_validation(error: ValidationError) -> ApiError:
    """Turn what pydantic found into a 400 that names the field of the first problem."""
    problem = error.errors(include_url=False, include_context=False)[0]
    location = problem["loc"]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {message}", "invalid_json")
    if not location:
        return ApiError(400, message, "invalid_value")
    param = str(location[0])
    if problem["type"] == "extra_forbidden":
        message = "is not a parameter of this server; leave it out"
        return ApiError(400, f"{param}: {message}", "unknown_parameter", param)
    code = "missing_required_parameter" if problem["type"] == "missing" else "invalid_value"
    return ApiError(400, f"{'.'.join(map(str, location))}: {message}", code, param)


def from_value_error(error: ValueError) -> ApiError:
    """Turn a refusal such as `prompt: has 300 tokens...` into a 400 that names the field."""
    name, colon, _ = str(error).partition(":")
    return ApiError(
        400, str(error), "invalid_value", name if colon and name.isidentifier() else None
    )
