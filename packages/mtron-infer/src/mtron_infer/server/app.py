"""The application: paths, errors, and the engine's lifetime."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from mtron_infer.config import ServerConfig
from mtron_infer.engine import Engine
from mtron_infer.server.client import ClientGoneError
from mtron_infer.server.completions import complete
from mtron_infer.server.errors import ApiError
from mtron_infer.server.guard import Guard
from mtron_infer.server.schemas import CompletionRequest
from mtron_infer.worker import AsyncEngine

_CLIENT_CLOSED_REQUEST = 499  # as nginx calls it; nobody reads the answer


def build_app(engine: Engine, config: ServerConfig | None = None) -> FastAPI:
    """Return the ASGI application that serves `engine`.

    The engine belongs to the application while it runs, from its startup to its shutdown.

    Args:
        engine: idle.
        config: name of the model, key, limits.
    """
    settings = config or ServerConfig()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = AsyncEngine(engine)
        try:
            yield
        finally:
            app.state.engine.close()

    # The interactive pages would load scripts from another host.
    app = FastAPI(title="mtron-infer", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Guard, config=settings)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGoneError, _client_gone)
    app.add_exception_handler(Exception, _bug)  # uvicorn logs it
    _add_paths(app, engine, settings)
    return app


def _add_paths(app: FastAPI, engine: Engine, config: ServerConfig) -> None:
    model = {
        "id": config.model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "mtron",
        "max_model_len": engine.max_len,
    }
    body = {"content": {"application/json": {"schema": CompletionRequest.model_json_schema()}}}

    @app.get("/health")
    async def health() -> Response:
        """Say whether requests are taken."""
        if not app.state.engine.is_running:
            raise ApiError(503, "the engine was closed", "engine_stopped")
        return JSONResponse({"status": "ok"})

    @app.get("/v1/models")
    async def models() -> Response:
        """List the one model."""
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        """Describe the model."""
        if name != config.model_name:
            message = f"the model {name!r} does not exist; this server has {config.model_name!r}"
            raise ApiError(404, message, "model_not_found", "model")
        return JSONResponse(model)

    @app.post("/v1/completions", openapi_extra={"requestBody": body})
    async def completions(http: Request) -> Response:
        """Continue prompts."""
        return await complete(http, app.state.engine, config)


async def _api_error(_: Request, error: Any) -> Response:
    return error.response()


async def _http_error(http: Request, error: Any) -> Response:
    messages = {
        404: f"there is nothing at {http.url.path!r}",
        405: f"{http.method} is not possible at {http.url.path!r}",
    }
    codes = {404: "not_found", 405: "method_not_allowed"}
    message = messages.get(error.status_code, str(error.detail))
    code = codes.get(error.status_code)
    headers = dict(error.headers or {})
    return ApiError(error.status_code, message, code, headers=headers).response()


async def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _bug(_: Request, __: Exception) -> Response:
    return ApiError(500, "the server failed; its log says why", "internal_error").response()
