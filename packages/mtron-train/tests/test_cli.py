import json
import os
import signal
import subprocess
import sys
import time

import pytest

import mtron_train

BASE = """
[run]
directory = "{root}/run"
steps = {steps}
[model]
model_type = "llama"
vocab_size = 300
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 32
[data]
train = "{datasets}/train"
validation = "{datasets}/validation"
seq_len = 32
global_batch_size = 8
[optim]
lr = 1e-2
[schedule]
kind = "cosine"
[validation]
max_samples = 8
"""


def command(*arguments):
    return [sys.executable, "-c", "from mtron_train.cli import main; main()", *map(str, arguments)]


def call(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


@pytest.fixture
def file(tmp_path, datasets):
    path = tmp_path / "run.toml"
    path.write_text(BASE.format(root=tmp_path, datasets=datasets, steps=6))
    return path


def test_pretrain_writes_everything_and_says_done_the_second_time(file, tmp_path):
    first = call("pretrain", file)
    assert first.returncode == 0, first.stderr
    assert "step 6/6" in first.stdout
    assert "perplexity" in first.stdout
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"checkpoints", "metrics.jsonl", "tensorboard", "curves.png"} <= names
    assert not [name for name in names if "tmp" in name]
    second = call("pretrain", file)
    assert second.returncode == 0
    assert "done already, step 6 of 6" in second.stdout


def test_ctrl_c_saves_and_the_same_command_resumes(file, tmp_path):
    process = subprocess.Popen(
        command("pretrain", file, "run.steps=100000", "log.every_steps=1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "stopped at step" in stdout
    assert "Traceback" not in stderr
    step = int(stdout.split("stopped at step ")[1].split()[0])
    resumed = call("pretrain", file, f"run.steps={step + 2}")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming at step {step}" in resumed.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optim.learning_rat=1"], "optim.learning_rat: there is no such key"),
        (["data.micro_batch_size=3"], "does not divide data.global_batch_size = 8"),
        (["run.steps=many"], "run.steps: input should be a valid integer"),
        (["data.train=nowhere"], "data.train: "),
        (["run.device=warp"], "'warp' is no torch device"),
    ],
)
def test_bad_input_is_one_paragraph_and_leaves_no_checkpoint(file, tmp_path, arguments, said):
    result = call("pretrain", file, *arguments)
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_a_damaged_checkpoint_is_refused(file, tmp_path):
    assert call("pretrain", file).returncode == 0
    (data,) = (tmp_path / "run" / "checkpoints").glob("step-*/data/*")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    result = call("pretrain", file, "run.steps=8")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert data.name in result.stderr


def test_a_missing_file_is_named(tmp_path):
    result = call("pretrain", tmp_path / "none.toml")
    assert result.returncode == 1
    assert "none.toml" in result.stderr


def test_config_prints_every_value(file):
    resolved = json.loads(call("config", file, "optim.lr=0.5").stdout)
    assert resolved["optim"]["lr"] == 0.5
    assert resolved["checkpoint"]["keep_last"] == 2
    schema = json.loads(call("config", "--schema").stdout)
    assert schema["$defs"]["RunSection"]["properties"]["steps"]["description"]


def test_help_and_configuration_need_no_torch(file):
    code = (
        "import sys; sys.argv = ['mtron-train', *sys.argv[1:]]\n"
        "from mtron_train.cli import app\n"
        "app(standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    for arguments in (["--help"], ["pretrain", "--help"], ["config", str(file)]):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, check=False
        )
        assert result.returncode == 0, arguments


def test_public_names_resolve():
    assert all(hasattr(mtron_train, name) for name in mtron_train.__all__)
