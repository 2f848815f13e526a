"""What every request must pass, whatever its path: the key, and the size of its body."""

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mtron_infer.config import ServerConfig
from mtron_infer.server.client import too_large
from mtron_infer.server.errors import ApiError


class Guard:
    """An ASGI application in front of another.

    Args:
        app: gets what is let through.
        config: says what is.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._max_body_bytes = config.max_body_bytes
        self._key = None if config.api_key is None else config.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an error, or let the other application answer."""
        if scope["type"] == "http":
            error = self._refusal(Headers(scope=scope))
            if error is not None:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        if self._key is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            matches = hmac.compare_digest(given.strip().encode(), self._key)
            if scheme.lower() != "bearer" or not matches:
                message = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'"
                challenge = {"WWW-Authenticate": "Bearer"}
                return ApiError(401, message, "invalid_api_key", headers=challenge)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            return too_large(self._max_body_bytes)
        return None
