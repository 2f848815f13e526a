"""`POST /v1/completions`, whole and as a stream of server-sent events."""

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from mtron_infer.config import ServerConfig
from mtron_infer.outputs import Output, join_outputs
from mtron_infer.scheduler import QueueFullError
from mtron_infer.server.client import read_body, unless_gone
from mtron_infer.server.errors import ApiError, from_validation, from_value_error
from mtron_infer.server.format import Formatter, best, usage
from mtron_infer.server.schemas import CompletionRequest
from mtron_infer.worker import AsyncEngine, EngineStoppedError, Stream


async def complete(http: HttpRequest, engine: AsyncEngine, config: ServerConfig) -> Response:
    """Answer a request for completions.

    Raises:
        ApiError: the request is refused.
        ClientGoneError: nobody waits for the answer.
    """
    body = _parse(await read_body(http, config.max_body_bytes))
    if body.model != config.model_name:
        raise ApiError(
            404,
            f"the model {body.model!r} does not exist; this server has {config.model_name!r}",
            "model_not_found",
            "model",
        )
    stream = await _submit(engine, body)
    formatter = Formatter(body.model, engine.token_text, body.logprobs is not None)
    if body.stream:
        return _EventStream(stream, body, formatter)
    try:
        outputs = await unless_gone(http, _collect(stream))
    except EngineStoppedError as error:
        raise ApiError(500, str(error), "engine_stopped") from None
    finally:
        stream.cancel()
    return JSONResponse(_whole(outputs, stream, body, formatter))


def _parse(data: bytes) -> CompletionRequest:
    try:
        return CompletionRequest.model_validate_json(data)
    except ValidationError as error:
        raise from_validation(error) from None


async def _submit(engine: AsyncEngine, body: CompletionRequest) -> Stream:
    try:
        requests = body.requests()
        num_sequences = sum(request.params.n for request in requests)
        if num_sequences > engine.engine.config.max_queue:
            raise ValueError(
                f"prompt: {len(requests)} prompts need {num_sequences} sequences, but the queue "
                f"takes {engine.engine.config.max_queue}; send them in several requests"
            )
        return await engine.submit(requests)
    except ValidationError as error:
        raise from_validation(error) from None
    except ValueError as error:
        raise from_value_error(error) from None
    except QueueFullError as error:
        raise ApiError(429, str(error), "queue_full", headers={"Retry-After": "1"}) from None
    except EngineStoppedError as error:
        raise ApiError(503, str(error), "engine_stopped") from None


async def _collect(stream: Stream) -> list[tuple[int, Output]]:
    return [item async for item in stream]


def _whole(
    outputs: list[tuple[int, Output]], stream: Stream, body: CompletionRequest, form: Formatter
) -> dict[str, Any]:
    """Return the answer to a request that is not streamed."""
    parts: dict[int, list[Output]] = defaultdict(list)
    for place, output in outputs:
        parts[place].append(output)
    choices, num_generated, n = [], 0, body.n or 1
    for place in sorted(parts):
        candidates = join_outputs(parts[place])
        num_generated += sum(choice.num_generated for choice in candidates)
        for rank, choice in enumerate(best(candidates, n)):
            index = place * n + rank
            choices.append(form.choice(index, choice.text, choice.tokens, choice.finish_reason))
    return form.body(choices, usage=usage(stream.num_prompt_tokens, num_generated))


class _EventStream(StreamingResponse):
    """The answer as server-sent events; ends the request when the client leaves."""

    def __init__(self, stream: Stream, body: CompletionRequest, form: Formatter) -> None:
        self._outputs = stream
        super().__init__(
            _events(stream, body, form),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._outputs.cancel()  # here and not in the iterator, which may never have begun


async def _events(stream: Stream, body: CompletionRequest, form: Formatter) -> AsyncIterator[str]:
    wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    more: dict[str, Any] = {"usage": None} if wants_usage else {}
    num_generated = 0
    try:
        async for place, output in stream:
            if output.finish_reason:
                num_generated += output.num_generated
            elif not (output.text or output.tokens):
                continue
            index = place * (body.n or 1) + output.index
            choice = form.choice(index, output.text, output.tokens, output.finish_reason)
            yield _event(form.body([choice], **more))
    except EngineStoppedError as error:
        yield _event(ApiError(500, str(error), "engine_stopped").body())
        return
    if wants_usage:
        yield _event(form.body([], usage=usage(stream.num_prompt_tokens, num_generated)))
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
