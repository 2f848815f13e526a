"""Bind to an address and serve until told to stop."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from mtron_infer.config import ServerConfig
from mtron_infer.engine import Engine
from mtron_infer.server.address import bind, check_address
from mtron_infer.server.app import build_app


def serve(
    engine: Engine,
    host: str = "127.0.0.1",
    port: int = 8000,
    config: ServerConfig | None = None,
    *,
    allow_remote: bool = False,
) -> None:
    """Serve `engine` until SIGTERM or Ctrl-C; then finish what runs and return.

    Args:
        engine: idle.
        host: address to bind to.
        port: of TCP; 0 takes a free one.
        config: name of the model, key, limits.
        allow_remote: whether other machines may connect without a key.

    Raises:
        ValueError: the address is open to others without a key.
        OSError: the port is in use, or the address does not exist.
    """
    settings = config or ServerConfig()
    check_address(host, settings.api_key, allow_remote)
    with bind(host, port) as listening:
        run(engine, listening, settings)


def run(engine: Engine, listening: socket.socket, config: ServerConfig) -> None:
    """Serve on a listening socket until SIGTERM or Ctrl-C; a second Ctrl-C does not wait."""
    server = uvicorn.Server(
        uvicorn.Config(
            build_app(engine, config),
            http="h11",
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=config.drain_seconds,
        )
    )
    with _signals_are_no_error():
        server.run(sockets=[listening])


@contextmanager
def _signals_are_no_error() -> Iterator[None]:
    """Ignore the signals that uvicorn raises again after it has stopped because of them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python lets nobody handle signals
        return
    previous = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
