import http.client
import json
import socket
import time

import openai
import pytest


def test_models_and_health(server, client):
    assert server.request("GET", "/health")[::2] == (200, {"status": "ok"})
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "mtron")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_completion(client, model, reference, tokenizer):
    answer = client.completions.create(
        model="tiny", prompt="def add(", max_tokens=12, temperature=0
    )
    ids = tokenizer.encode("def add(")
    expected = reference.greedy_loop(model, ids, 12)
    assert answer.object == "text_completion"
    assert answer.model == "tiny"
    assert answer.choices[0].text == tokenizer.decode(expected)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 12)
    assert answer.usage.total_tokens == len(ids) + 12
    default = client.completions.create(model="tiny", prompt="x", extra_body={"ignore_eos": True})
    assert default.usage.completion_tokens == 16


def test_all_forms_of_prompts(client, tokenizer):
    def texts(prompt):
        answer = client.completions.create(model="tiny", prompt=prompt, temperature=0)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    ids = [tokenizer.encode(text) for text in ("ab", "日本")]
    a, b = texts("ab"), texts("日本")
    assert texts(["ab", "日本"]) == a + b == texts(ids)
    assert texts(ids[1]) == b
    assert texts("") == texts(None) == texts([0])


def test_stream_is_the_same_text_in_pieces(client):
    asked = {"model": "tiny", "prompt": ["日本", "def"], "max_tokens": 20, "seed": 3, "n": 2}
    whole = client.completions.create(**asked)
    texts, reasons, usages = {}, {}, []
    options = {"include_usage": True}
    for chunk in client.completions.create(**asked, stream=True, stream_options=options):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usages[-1] == whole.usage
    assert set(usages[:-1]) == {None}


def test_async_client(server):
    import asyncio

    async def run():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="-") as client:
            asked = {"model": "tiny", "prompt": "def", "temperature": 0, "max_tokens": 9}
            answers = await asyncio.gather(*(client.completions.create(**asked) for _ in range(6)))
            text = ""
            async for chunk in await client.completions.create(**asked, stream=True):
                text += chunk.choices[0].text
            assert {answer.choices[0].text for answer in answers} == {text}

    asyncio.run(run())


def test_raw_stream_ends_with_done(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    body = json.dumps({"model": "tiny", "prompt": "a", "stream": True, "max_tokens": 4})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = answer.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(e.removeprefix("data: "))["id"] for e in events[:-2])
    assert "usage" not in json.loads(events[0].removeprefix("data: "))
    connection.close()


def test_echo_with_logprobs_scores_a_text(client, model, reference, tokenizer):
    text = "def naïve():"
    answer = client.completions.create(
        model="tiny", prompt=text, echo=True, max_tokens=0, logprobs=1
    )
    ids = tokenizer.encode(text)
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text == text
    assert answer.usage.completion_tokens == 0
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    expected = reference.next_logprobs(model, ids)
    for position, token in enumerate(ids[1:]):
        assert logprobs.token_logprobs[position + 1] == pytest.approx(
            float(expected[position][token]), abs=1e-9
        )
        top = logprobs.top_logprobs[position + 1]
        assert max(top.values()) == pytest.approx(float(expected[position].max()), abs=1e-9)
    assert len(logprobs.tokens) == len(ids) == len(logprobs.text_offset)
    assert logprobs.text_offset == sorted(logprobs.text_offset)


def test_logprobs_add_up_in_a_stream(client):
    asked = {"model": "tiny", "prompt": "x", "max_tokens": 15, "seed": 1, "logprobs": 2}
    whole = client.completions.create(**asked).choices[0]
    tokens, numbers = [], []
    for chunk in client.completions.create(**asked, stream=True):
        tokens += chunk.choices[0].logprobs.tokens
        numbers += chunk.choices[0].logprobs.token_logprobs
    assert tokens == whole.logprobs.tokens
    assert numbers == whole.logprobs.token_logprobs


def test_best_of_returns_the_most_probable(client):
    asked = {"model": "tiny", "prompt": "x", "max_tokens": 8, "seed": 4}
    asked["extra_body"] = {"ignore_eos": True}
    all_of_them = client.completions.create(**asked, n=6, logprobs=0)
    means = {choice.text: sum(choice.logprobs.token_logprobs) / 8 for choice in all_of_them.choices}
    best = client.completions.create(**asked, n=2, best_of=6)
    assert [c.text for c in best.choices] == sorted(means, key=means.__getitem__)[:-3:-1]
    assert [c.index for c in best.choices] == [0, 1]
    assert best.choices[0].logprobs is None
    assert best.usage.completion_tokens == 48


def test_stop_strings_seed_penalties_bias_user(client):
    asked = {"model": "tiny", "prompt": "x", "max_tokens": 30, "temperature": 0, "user": "me"}
    text = client.completions.create(**asked).choices[0].text
    stopped = client.completions.create(**asked, stop=[text[3:5], "never"]).choices[0]
    assert stopped.text == text[: text.index(text[3:5])]
    assert stopped.finish_reason == "stop"
    biased = client.completions.create(**asked, logit_bias={"70": 100}, stop=None).choices[0].text
    assert len(set(biased)) == 1
    varied = client.completions.create(
        **asked, logit_bias={"70": 1}, presence_penalty=2, frequency_penalty=2
    )
    assert len(set(varied.choices[0].text)) > 5
    del asked["temperature"]
    draws = [client.completions.create(**asked, seed=seed).choices[0].text for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_the_interface_is_described(server):
    status, _, body = server.request("GET", "/openapi.json")
    assert status == 200
    (content,) = body["paths"]["/v1/completions"]["post"]["requestBody"]["content"].values()
    assert "logit_bias" in content["schema"]["properties"]


def test_large_bodies_are_refused(make_server):
    server = make_server(max_body_bytes=1024)
    status, _, body = server.complete(prompt="a" * 2000)
    assert (status, body["error"]["code"]) == (413, "body_too_large")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    parts = iter([b'{"prompt": "', *[b"a" * 100] * 50])
    headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    connection.request("POST", "/v1/completions", parts, headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_every_path_wants_the_key(make_server):
    server = make_server(api_key="secret")
    for path in ("/health", "/v1/models", "/nothing", "/openapi.json"):
        for given in (None, "Bearer wrong", "Bearer", "Basic secret", "secret", "Bearer \xe9"):
            status, headers, body = server.request("GET", path, headers={"Authorization": given})
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")
            assert headers["WWW-Authenticate"] == "Bearer"
        assert server.request("GET", path, headers={"Authorization": "Bearer secret"})[0] != 401
    with openai.OpenAI(base_url=server.url + "/v1", api_key="secret") as client:
        assert client.completions.create(model="tiny", prompt="a").choices


def slow(monkeypatch, engine, seconds=0.02):
    """Make every step take a while, so that requests overlap."""
    forward = engine._runner.forward

    def wait(*arguments):
        time.sleep(seconds)
        return forward(*arguments)

    monkeypatch.setattr(engine._runner, "forward", wait)


@pytest.fixture
def start():
    """Returns a function that sends a request and does not read the answer."""
    connections = []

    def send(server, **body):
        connections.append(_send(server, body))
        return connections[-1]

    yield send
    for connection in connections:
        connection.close()


def _send(server, body):
    data = json.dumps({"model": "tiny", "prompt": "a", "ignore_eos": True} | body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
    )
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slots(stream, make_server, monkeypatch, start):
    server = make_server({"max_batch_size": 2})
    slow(monkeypatch, server.engine, 0.1)
    connection = start(server, stream=stream, max_tokens=60, n=4)
    while not server.engine.num_running:
        time.sleep(0.01)
    if stream:
        connection.recv(200)
    connection.close()
    server.wait_until_idle(3)


def test_a_full_queue_answers_429(make_server, monkeypatch, start):
    server = make_server({"max_batch_size": 1, "max_queue": 2})
    slow(monkeypatch, server.engine)
    connections = []
    for _ in range(3):
        connections.append(start(server, max_tokens=60))
        while len(connections) != server.engine.num_waiting + server.engine.num_running:
            time.sleep(0.005)
    status, headers, body = server.complete(prompt="a")
    assert (status, body["error"]["type"]) == (429, "rate_limit_error")
    assert int(headers["Retry-After"]) >= 1
    for connection in connections:
        connection.close()
    server.wait_until_idle()
    assert server.complete(prompt="a")[0] == 200


def test_a_slow_reader_holds_up_nobody(make_server, start):
    server = make_server({"max_batch_size": 2})
    unread = [start(server, stream=True, max_tokens=60, n=8, logprobs=20) for _ in range(2)]
    for _ in range(5):
        assert server.complete(prompt="a", max_tokens=5)[0] == 200
    for connection in unread:
        connection.close()
    server.wait_until_idle()


def test_an_engine_that_fails_answers_500_and_goes_on(make_server, monkeypatch, caplog):
    server = make_server()
    with monkeypatch.context() as patch:
        patch.setattr(server.engine._runner, "forward", lambda *_: 1 / 0)
        status, _, body = server.complete(prompt="a")
        assert (status, body["error"]["type"]) == (500, "server_error")
        with openai.OpenAI(base_url=server.url + "/v1", api_key="-", max_retries=0) as client:
            asked = {"model": "tiny", "prompt": "a", "stream": True}
            with pytest.raises(openai.APIError, match="the engine failed"):
                list(client.completions.create(**asked))
    assert "ZeroDivisionError" in caplog.text
    assert server.complete(prompt="a")[0] == 200


def test_stopping_finishes_what_runs(make_server, monkeypatch, start):
    server = make_server()
    slow(monkeypatch, server.engine)
    connection = start(server, max_tokens=30)
    while not server.engine.num_running:
        time.sleep(0.01)
    server.stop()
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    connection.close()


def test_a_bug_answers_500_and_tells_nothing(make_server, monkeypatch):
    server = make_server()
    monkeypatch.setattr("mtron_infer.server.completions._whole", lambda *_: 1 / 0)
    status, _, body = server.complete(prompt="a")
    assert (status, body["error"]["type"]) == (500, "server_error")
    assert "division" not in json.dumps(body)
