"""The client's side of a request: its body, and whether it is still there."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from mtron_infer.server.errors import ApiError

_T = TypeVar("_T")


class ClientGoneError(Exception):
    """The client closed the connection."""


async def read_body(http: Request, max_bytes: int) -> bytes:
    """Return the body of a request with a JSON body.

    Raises:
        ApiError: it is too large, or not declared as JSON.
        ClientGoneError: the client left before it was complete.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page in a browser can post anything else to a server on this machine without asking.
        raise ApiError(
            400, f"Content-Type: must be application/json, got {kind!r}", "invalid_content_type"
        )
    parts, size = [], 0
    try:
        async for part in http.stream():
            size += len(part)
            if size > max_bytes:
                raise too_large(max_bytes)
            parts.append(part)
    except ClientDisconnect:
        raise ClientGoneError from None
    return b"".join(parts)


def too_large(max_bytes: int) -> ApiError:
    """Return the refusal of a body of more than `max_bytes`."""
    message = f"the body is larger than {max_bytes} bytes"
    return ApiError(413, message, "body_too_large", headers={"Connection": "close"})


async def unless_gone(http: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Wait for `work`, but not longer than the client does.

    Args:
        http: the request, whose body has been read.
        work: is cancelled when the client leaves.

    Raises:
        ClientGoneError: the client left.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
