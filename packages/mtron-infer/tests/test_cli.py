import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import openai
import pytest

from mtron_infer.cli import main

CODE = "from mtron_infer.cli import main; main()"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def run(monkeypatch, capfdbinary):
    """Returns a function that runs the command in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mtron-infer", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capfdbinary.readouterr()
        return exit_.value.code or 0, out.decode(), err.decode()

    return call


def test_the_continuation_and_nothing_else(run, checkpoint, model, reference, tokenizer):
    prompt = "def add("
    expected = tokenizer.decode(reference.greedy_loop(model, tokenizer.encode(prompt), 20))
    greedy = ("--max-tokens", 20, "--temperature", 0)
    code, out, err = run("generate", checkpoint, "--prompt", prompt, *greedy)
    assert (code, out) == (0, expected)
    assert "step 20" in err and "20 tokens" in err


def test_prompts_from_files(run, checkpoint, tmp_path, monkeypatch):
    text = "naïve 日本\n"
    (tmp_path / "prompt.txt").write_text(text, "utf-8")
    greedy = ("--max-tokens", 9, "--temperature", 0)
    _, expected, _ = run("generate", checkpoint, "--prompt", text, *greedy)
    found = run("generate", checkpoint, "--prompt-file", tmp_path / "prompt.txt", *greedy)
    assert found[:2] == (0, expected)
    with (tmp_path / "prompt.txt").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert run("generate", checkpoint, "--prompt-file", "-", *greedy)[:2] == (0, expected)


def test_seeds_and_stop(run, checkpoint):
    asked = ("generate", checkpoint, "--prompt", "x", "--max-tokens", 30, "--top-p", 0.9)
    first, second = (run(*asked, "--seed", 5)[1] for _ in range(2))
    assert first == second != run(*asked, "--seed", 6)[1]
    stop = first[3:5]
    assert run(*asked, "--seed", 5, "--stop", stop)[1] == first[: first.index(stop)]


def test_mistakes_give_one_paragraph(run, checkpoint, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    text = ("--prompt", "x")
    cases = [
        (("generate", tmp_path / "missing", *text), "missing"),
        (("generate", tmp_path, *text), "checkpoint"),
        (("generate", checkpoint), "--prompt: give either"),
        (("generate", checkpoint, *text, "--prompt-file", "a"), "--prompt: give either"),
        (("generate", checkpoint, "--prompt-file", tmp_path / "none.txt"), "none.txt"),
        (("generate", checkpoint, "--prompt-file", tmp_path / "latin.txt"), "not UTF-8"),
        (("generate", checkpoint, "--prompt", "x" * 500), "prompt: has"),
        (("generate", checkpoint, *text, "--max-tokens", -1), "max_tokens: "),
        (("generate", checkpoint, *text, "--temperature", -1), "temperature: "),
        (("generate", checkpoint, *text, "--temperature", "nan"), "temperature: "),
        (("generate", checkpoint, *text, "--top-p", 0), "top_p: "),
        (("generate", checkpoint, *text, "--top-k", -3), "top_k: "),
        (("generate", checkpoint, *text, "--seed", 2**63), "seed: "),
        (("generate", checkpoint, *text, "--device", "warp"), "device: "),
        (("serve", checkpoint, "--port", 70000), "port: "),
        (("serve", checkpoint, "--host", "0.0.0.0"), "--allow-remote"),
        (("serve", checkpoint, "--max-batch-size", 0), "max_batch_size: "),
        (("serve", checkpoint, "--max-len", 100, "--port", 0), "max_len: "),
        (("serve", checkpoint, "--host", "no.such.host.invalid", "--api-key", "k"), "no.such"),
    ]
    for arguments, part in cases:
        code, out, err = run(*arguments)
        assert code == 1, (arguments, err)
        assert out == ""
        last = err.splitlines()[-1]
        assert last.startswith("error: ") and part in last, (arguments, err)
        assert "Traceback" not in err


def test_debug_shows_where(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mtron-infer", "generate", str(tmp_path / "no"), "--debug"])
    with pytest.raises(ValueError, match="--prompt"):
        main()


def test_a_port_in_use_is_told_before_the_model_is_loaded(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run("serve", tmp_path / "no-checkpoint", "--port", port)
    assert code == 1
    assert f"127.0.0.1:{port}" in err and "--port" in err and "no-checkpoint" not in err


def test_a_damaged_checkpoint(run, checkpoint, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(checkpoint, root)
    (data,) = root.glob("step-*/data/*")
    data.write_bytes(data.read_bytes()[:3000])
    code, out, err = run("generate", root, "--prompt", "x")
    assert (code, out) == (1, "")
    assert "damaged" in err


def test_a_reader_that_leaves_is_no_traceback(checkpoint):
    arguments = ["generate", checkpoint, "--prompt", "x", "--max-tokens", "60"]
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_until_told_to_stop(number, checkpoint):
    arguments = ["serve", checkpoint, "--port", "0", "--model-name", "tiny", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    notes = []
    for line in process.stderr:
        notes.append(line)
        if "serving" in line:
            break
    url = notes[-1].split(" at ")[1].split(";")[0]
    with urllib.request.urlopen(f"{url}/health") as answer:
        assert json.load(answer) == {"status": "ok"}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-") as client:
        stream = client.completions.create(
            model="tiny", prompt="a", max_tokens=40, stream=True, extra_body={"ignore_eos": True}
        )
        chunks = [next(stream)]
        threading.Timer(0.01, process.send_signal, [number]).start()
        chunks += stream
    assert chunks[-1].choices[0].finish_reason == "length"
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert "stopped" in err and "Traceback" not in err
