"""Run an engine in a thread of its own and hand its outputs to asyncio.

The thread takes commands from a queue and otherwise steps the engine. After each step one call per
event loop puts the new outputs into the queues of their streams, so a slow reader holds up nobody:
what waits for it is bounded by the number of tokens it asked for.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeAlias

from mtron_infer.engine import Engine
from mtron_infer.outputs import Output, Request
from mtron_infer.sequence import PreparedRequest

_log = logging.getLogger(__name__)

_Item: TypeAlias = "Output | Exception"


class EngineStoppedError(RuntimeError):
    """The engine was closed, or a step failed; the request cannot be finished."""


class Stream:
    """The outputs of some requests, as an asynchronous iterator of (place in the list, output).

    Every stream must be read to its end or be cancelled.

    Attributes:
        loop: the event loop that reads it.
        num_prompt_tokens: of all its requests.
        request_ids: of the engine, in the order of the requests.
    """

    def __init__(
        self, requests: Sequence[PreparedRequest], cancel: "Callable[[Stream], None]"
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.num_prompt_tokens = sum(len(request.prompt) for request in requests)
        self.request_ids: list[int] = []
        self._items: asyncio.Queue[_Item] = asyncio.Queue()
        self._unfinished = sum(request.params.n for request in requests)
        self._cancel = cancel

    def put(self, items: Sequence[_Item]) -> None:
        """Append items; to be called in the stream's event loop."""
        for item in items:
            self._items.put_nowait(item)

    def cancel(self) -> None:
        """End the requests, if they have not ended yet."""
        if self._unfinished:
            self._unfinished = 0
            self._cancel(self)

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> tuple[int, Output]:
        if not self._unfinished:
            raise StopAsyncIteration
        item = await self._items.get()
        if isinstance(item, Exception):
            self._unfinished = 0
            raise item
        self._unfinished -= item.finish_reason is not None
        return self.request_ids.index(item.request_id), item


class AsyncEngine:
    """An engine behind an asynchronous front; owns the engine until `close`.

    Args:
        engine: idle; its other methods may not be called in the meantime.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._open: dict[int, _Open] = {}
        self._lock = threading.Lock()
        self._closing = False  # no more requests are taken; guarded by the lock
        self._stopped = False  # set in the thread, behind all requests that were taken
        self._thread = threading.Thread(target=self._run, name="mtron-infer-engine", daemon=True)
        engine.set_owner(self._thread)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether requests are taken."""
        return not self._closing

    def token_text(self, token_id: int) -> str:
        """Return the text of one token; safe to call from any thread."""
        return self.engine.tokenizer.decode([token_id])

    async def submit(self, requests: Sequence[Request]) -> Stream:
        """Put requests in the queue, all or none.

        Raises:
            ValueError: one of them can never run.
            QueueFullError: they cannot wait now.
            EngineStoppedError: the engine was closed.
        """
        prepared = await asyncio.to_thread(lambda: [self.engine.prepare(r) for r in requests])
        stream = Stream(prepared, self._cancel_later)
        accepted: asyncio.Future[None] = stream.loop.create_future()
        with self._lock:
            if self._closing:
                raise EngineStoppedError("the engine was closed")
            self._commands.put(lambda: self._add(prepared, stream, accepted))
        try:
            await accepted
        except BaseException:
            stream.cancel()
            raise
        return stream

    async def stream(self, request: Request) -> AsyncIterator[Output]:
        """Yield the outputs of one request; leaving the iteration early cancels it."""
        stream = await self.submit([request])
        try:
            async for _, output in stream:
                yield output
        finally:
            stream.cancel()

    def close(self) -> None:
        """Stop the thread; unfinished streams end with `EngineStoppedError`."""
        with self._lock:
            self._closing = True
            self._commands.put(self._stop)
        self._thread.join()
        self.engine.set_owner(None)

    def _cancel_later(self, stream: Stream) -> None:
        self._commands.put(lambda: self._cancel(stream))

    # Everything below runs in the thread.

    def _run(self) -> None:
        while True:
            self._take_commands()
            if self._stopped:
                break
            try:
                outputs = self.engine.step()
            except Exception:
                _log.exception("a step of the engine failed; all its requests end")
                self._end_all(EngineStoppedError("the engine failed; the server's log says why"))
                continue
            self._deliver(outputs)
        self._end_all(EngineStoppedError("the engine was closed"))

    def _take_commands(self) -> None:
        """Run all commands; wait for one if there is nothing else to do."""
        try:
            if not self.engine.is_busy:
                self._commands.get()()
            while True:
                self._commands.get_nowait()()
        except Empty:
            return

    def _stop(self) -> None:
        self._stopped = True

    def _add(
        self, requests: list[PreparedRequest], stream: Stream, accepted: "asyncio.Future[None]"
    ) -> None:
        error: Exception | None = None
        try:
            stream.request_ids = self.engine.add_all(requests)
            for request_id, request in zip(stream.request_ids, requests, strict=True):
                self._open[request_id] = _Open(stream, request.params.n)
        except Exception as problem:
            error = problem
        _call(stream.loop, lambda: _answer(accepted, error))

    def _cancel(self, stream: Stream) -> None:
        for request_id in stream.request_ids:
            self.engine.cancel(request_id)
            self._open.pop(request_id, None)

    def _deliver(self, outputs: Sequence[Output]) -> None:
        groups: dict[Stream, list[Output]] = {}
        for output in outputs:
            request = self._open.get(output.request_id)
            if request is None:
                continue  # cancelled
            groups.setdefault(request.stream, []).append(output)
            request.unfinished -= output.finish_reason is not None
            if not request.unfinished:
                del self._open[output.request_id]
        self._send(groups)

    def _end_all(self, error: EngineStoppedError) -> None:
        self.engine.reset()
        streams = {request.stream for request in self._open.values()}
        self._open.clear()
        self._send({stream: [error] for stream in streams})

    def _send(self, items: Mapping[Stream, Sequence[_Item]]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[Stream]] = {}
        for stream in items:
            loops.setdefault(stream.loop, []).append(stream)
        for loop, streams in loops.items():
            if not _call(loop, lambda streams=streams: [s.put(items[s]) for s in streams]):
                for stream in streams:
                    self._cancel(stream)


@dataclass
class _Open:
    """A request in the engine: where its outputs go, and how many choices have not ended."""

    stream: Stream
    unfinished: int


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> bool:
    """Run a function in an event loop; return whether the loop still exists."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:  # the loop was closed, and with it everybody who waits
        return False
    return True


def _answer(future: "asyncio.Future[None]", error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
