import http.client
import importlib.util
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
import torch
import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mtron_ckpt import LocalArray, Metadata, save
from mtron_ckpt.torch_io import from_torch
from mtron_infer import Engine, EngineConfig, ServerConfig, build_app
from mtron_infer.server.address import bind
from mtron_models import LlamaConfig, build, initialize

TEXT = (
    "def add(first, second):\n    return first + second\n"
    "Grüße aus Köln, naïve café. 日本語の文字 and 😀👩‍👩‍👧 mixed.\n"
)


class ByteLevel:
    """A small byte-level tokenizer with the interface of mtron_data's."""

    def __init__(self, vocab_size=300):
        self._tokenizer = Tokenizer(models.BPE())
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = decoders.ByteLevel()
        self._tokenizer.train_from_iterator(
            [TEXT],
            trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=["<|end|>"],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.eos_id = 0

    def files(self):
        """The files of this tokenizer as they travel with a checkpoint."""
        config = {"eos_token": "<|end|>"}
        return {
            "tokenizer.json": self._tokenizer.to_str().encode(),
            "tokenizer_config.json": json.dumps(config).encode(),
        }

    def encode(self, text):
        return self._tokenizer.encode(text).ids

    def decode(self, token_ids, *, skip_special_tokens=False):
        assert all(0 <= token < self.vocab_size for token in token_ids)
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)


def tiny_model(dtype=torch.float64, **changes):
    torch.set_num_threads(1)
    sizes = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,  # so that continuations differ and do not repeat one token
    }
    config = LlamaConfig(**(sizes | changes))
    model = build(config, dtype=dtype).to_empty(device="cpu")
    initialize(model, seed=1)
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer():
    return ByteLevel()


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture
def make_engine(model, tokenizer):
    """Returns a function that makes an engine; all of them must be idle at the end."""
    engines = []

    def make(**limits):
        engines.append(Engine(model, tokenizer, EngineConfig(**limits)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
        assert not engine.is_busy
        assert (engine.num_running, engine.num_waiting) == (0, 0)


@pytest.fixture
def make_model():
    return tiny_model


def next_logprobs(model, token_ids):
    """Log-probabilities [n, vocab] after every token, by one plain forward pass."""
    with torch.no_grad():
        return model(torch.tensor([list(token_ids)]))[0].log_softmax(-1)


def greedy_loop(model, prompt, num_tokens, eos=0):
    """The plain way to continue: a whole forward pass and an argmax for each token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + num_tokens:
        token = int(next_logprobs(model, tokens)[-1].argmax())
        if token == eos:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@pytest.fixture(scope="session")
def reference():
    return SimpleNamespace(next_logprobs=next_logprobs, greedy_loop=greedy_loop)


@pytest.fixture(scope="session")
def tolerances():
    path = Path(__file__).with_name("tolerances.py")
    spec = importlib.util.spec_from_file_location("mtron_infer_tolerances", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Server:
    """A server in a thread, with a plain HTTP client."""

    def __init__(self, engine, **settings):
        self.engine = engine
        self.settings = ServerConfig(**({"model_name": "tiny"} | settings))
        self.socket = bind("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            build_app(engine, self.settings), http="h11", ws="none", log_level="warning"
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()

    def stop(self):
        self.server.should_exit = True
        self.thread.join(20)
        self.socket.close()
        assert not self.thread.is_alive()

    def request(self, method, path, body=None, headers=None):
        """Return status, headers and JSON body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {"Content-Type": "application/json"} | (headers or {})
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, {k: v for k, v in sent.items() if v is not None})
        answer = connection.getresponse()
        result = (answer.status, answer.headers, json.loads(answer.read() or b"null"))
        connection.close()
        return result

    def complete(self, **body):
        return self.request("POST", "/v1/completions", {"model": "tiny"} | body)

    def wait_until_idle(self, seconds=10):
        end = time.monotonic() + seconds
        while self.engine.num_running or self.engine.num_waiting:
            assert time.monotonic() < end, "a slot was not given back"
            time.sleep(0.01)


@pytest.fixture
def make_server(make_engine):
    servers = []

    def make(limits=None, **settings):
        servers.append(Server(make_engine(**(limits or {})), **settings))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(model, tokenizer):
    """One server for the tests that leave it as it was."""
    result = Server(Engine(model, tokenizer, EngineConfig(max_queue=16)))
    yield result
    result.wait_until_idle()
    result.stop()


@pytest.fixture
def client(server):
    """OpenAI's client of that server."""
    with openai.OpenAI(base_url=server.url + "/v1", api_key="-", max_retries=0) as made:
        yield made


def save_checkpoint(root, model, files, *, step=20, config=None, dtype=None):
    """Write a checkpoint as training writes it."""
    arrays = {
        f"param/{name}": LocalArray(
            from_torch(p.detach() if dtype is None else p.detach().to(dtype)),
            tuple(p.shape),
            (0,) * p.dim(),
        )
        for name, p in model.named_parameters()
    }
    stored = {"model": model.config.model_dump(mode="json")} if config is None else config
    metadata = Metadata(step=step, config=stored, state={}, layout={}, assets=files)
    return save(root, arrays, metadata).wait()


@pytest.fixture(scope="session")
def write_checkpoint():
    return save_checkpoint


@pytest.fixture(scope="session")
def tokenizer_files(tokenizer):
    return tokenizer.files()


@pytest.fixture(scope="session")
def checkpoint(model, tokenizer_files, tmp_path_factory):
    """Root of a good checkpoint."""
    root = tmp_path_factory.mktemp("run")
    save_checkpoint(root, model, tokenizer_files)
    return root
