import openai
import pytest

BAD = [
    ({"prompt": [1] * 65}, "prompt", "65 tokens, but the context holds 64"),
    ({"prompt": []}, "prompt", "string"),
    ({"prompt": [[]]}, "prompt", "string"),
    ({"prompt": ["a", 1]}, "prompt", "string"),
    ({"prompt": [True]}, "prompt", "string"),
    ({"prompt": [300]}, "prompt", "got 300"),
    ({"prompt": [10**30]}, "prompt", "got 10000"),
    ({"prompt": {"a": 1}}, "prompt", "string"),
    ({"prompt": ["a"] * 17}, "prompt", "17 sequences"),
    ({"model": None}, "model", "string"),
    ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
    ({"max_tokens": "5"}, "max_tokens", "integer"),
    ({"max_tokens": 1.5}, "max_tokens", "integer"),
    ({"max_tokens": True}, "max_tokens", "integer"),
    ({"temperature": -0.1}, "temperature", "greater"),
    ({"temperature": 2.5}, "temperature", "less"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"top_p": 1.1}, "top_p", "less"),
    ({"top_k": -1}, "top_k", "greater"),
    ({"n": 0}, "n", "greater"),
    ({"n": 10**9}, "n", "less"),
    ({"n": 17}, "prompt", "17 sequences"),
    ({"n": 3, "best_of": 2}, "best_of", "less than n"),
    ({"best_of": 2, "stream": True}, "best_of", "streamed"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only for stream"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options", ""),
    ({"logprobs": 21}, "logprobs", "less"),
    ({"logprobs": True}, "logprobs", "integer"),
    ({"echo": 1}, "echo", "boolean"),
    ({"stop": ""}, "stop", "at least 1"),
    ({"stop": [1]}, "stop", "string"),
    ({"stop": ["a"] * 17}, "stop", "at most 16"),
    ({"seed": 2**63}, "seed", "less"),
    ({"seed": 1.5}, "seed", "integer"),
    ({"presence_penalty": 3}, "presence_penalty", "less"),
    ({"frequency_penalty": -3}, "frequency_penalty", "greater"),
    ({"logit_bias": {"300": 1}}, "logit_bias", "got 300"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "less"),
    ({"logit_bias": [1]}, "logit_bias", "object"),
    ({"suffix": "end"}, "suffix", "does not insert"),
    ({"user": 5}, "user", "string"),
    ({"messages": []}, "messages", "not a parameter"),
]


@pytest.mark.parametrize(("fields", "param", "part"), BAD)
def test_bad_values_are_named(fields, param, part, server):
    for stream in ({}, {"stream": True}) if param != "stream_options" else ({},):
        status, _, body = server.complete(**({"prompt": "a"} | stream | fields))
        assert status == 400, body
        assert body["error"]["param"] == param
        assert part in body["error"]["message"]
        assert body["error"]["type"] == "invalid_request_error"
    assert not server.engine.num_running


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"model": "tiny", "prompt": "\xff\xfe"}',
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "temperature": NaN}',
        b"[" * 100_000,
        b'{"model": "tiny", "prompt": [' + b"[" * 5000,
        b'{"model": "tiny", "n": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "prompt": [' + b"9" * 5000 + b"]}",
    ],
)
def test_bodies_that_are_no_request(data, server):
    status, _, body = server.request("POST", "/v1/completions", data)
    assert status == 400
    assert set(body["error"]) == {"message", "type", "param", "code"}


def test_openai_client_sees_its_own_errors(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="a", max_tokens=-1)
    assert caught.value.param == "max_tokens"
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt", prompt="a")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt="a", stream=True, n=0)


def test_wrong_paths_methods_and_types(server):
    for method, path, status in (
        ("GET", "/v1/completions", 405),
        ("POST", "/health", 405),
        ("GET", "/nothing", 404),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/docs", 404),
    ):
        found, headers, body = server.request(method, path)
        assert found == status
        assert body["error"]["type"] == "invalid_request_error"
        assert status != 405 or headers["Allow"]
    plain = {"Content-Type": "text/plain"}
    status, _, body = server.request("POST", "/v1/completions", b"{}", plain)
    assert (status, body["error"]["code"]) == (400, "invalid_content_type")
