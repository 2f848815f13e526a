"""Batched generation and an OpenAI-compatible server for what mtron trains."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtron_infer.config import EngineConfig as EngineConfig
    from mtron_infer.config import SamplingParams as SamplingParams
    from mtron_infer.config import ServerConfig as ServerConfig
    from mtron_infer.engine import Engine as Engine
    from mtron_infer.loading import LoadedModel as LoadedModel
    from mtron_infer.loading import load as load
    from mtron_infer.outputs import Choice as Choice
    from mtron_infer.outputs import Completion as Completion
    from mtron_infer.outputs import Output as Output
    from mtron_infer.outputs import Request as Request
    from mtron_infer.outputs import TokenLogprob as TokenLogprob
    from mtron_infer.scheduler import QueueFullError as QueueFullError
    from mtron_infer.server.app import build_app as build_app
    from mtron_infer.server.run import serve as serve
    from mtron_infer.worker import AsyncEngine as AsyncEngine
    from mtron_infer.worker import EngineStoppedError as EngineStoppedError
    from mtron_infer.worker import Stream as Stream

__all__ = [
    "AsyncEngine",
    "Choice",
    "Completion",
    "Engine",
    "EngineConfig",
    "EngineStoppedError",
    "LoadedModel",
    "Output",
    "QueueFullError",
    "Request",
    "SamplingParams",
    "ServerConfig",
    "Stream",
    "TokenLogprob",
    "build_app",
    "load",
    "serve",
]
_MODULES = {
    "AsyncEngine": "mtron_infer.worker",
    "Choice": "mtron_infer.outputs",
    "Completion": "mtron_infer.outputs",
    "Engine": "mtron_infer.engine",
    "EngineConfig": "mtron_infer.config",
    "EngineStoppedError": "mtron_infer.worker",
    "LoadedModel": "mtron_infer.loading",
    "Output": "mtron_infer.outputs",
    "QueueFullError": "mtron_infer.scheduler",
    "Request": "mtron_infer.outputs",
    "SamplingParams": "mtron_infer.config",
    "ServerConfig": "mtron_infer.config",
    "Stream": "mtron_infer.worker",
    "TokenLogprob": "mtron_infer.outputs",
    "build_app": "mtron_infer.server.app",
    "load": "mtron_infer.loading",
    "serve": "mtron_infer.server.run",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
