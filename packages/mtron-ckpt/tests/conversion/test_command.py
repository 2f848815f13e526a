import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import LocalArray, Metadata, convert
from mtron_ckpt.conversion.families import FAMILIES


def test_no_torch_is_needed(tmp_path, model, save_checkpoint):
    save_checkpoint(model)
    code = (
        "import sys, mtron_ckpt\n"
        "mtron_ckpt.convert(sys.argv[1], sys.argv[2], to='hf')\n"
        "mtron_ckpt.convert(sys.argv[2], sys.argv[3], to='mtron')\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    paths = [str(tmp_path / name) for name in ("root", "hf", "back")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)


def test_the_function_is_not_hidden_by_a_module():
    import mtron_ckpt.conversion.command

    assert mtron_ckpt.convert is convert
    assert callable(convert)


def command(*arguments):
    script = Path(sys.executable).with_name("mtron-ckpt")
    return subprocess.run([script, *map(str, arguments)], capture_output=True, text=True)


def test_the_command_converts_and_explains_refusals(tmp_path, model, save_checkpoint):
    save_checkpoint(model)
    done = command("convert", tmp_path / "root", tmp_path / "out", "--to", "hf")
    assert done.returncode == 0, done.stderr
    assert "21 tensors" in done.stdout
    again = command("convert", tmp_path / "root", tmp_path / "out", "--to", "hf")
    assert again.returncode != 0
    assert again.stdout == ""
    assert "already exists" in again.stderr
    assert "Traceback" not in again.stderr
    shutil.rmtree(tmp_path / "root")
    (tmp_path / "root").mkdir()
    gone = command("convert", tmp_path / "root", tmp_path / "other", "--to", "hf")
    assert gone.returncode != 0
    assert "holds no checkpoint" in gone.stderr


DENSE = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
EXPERTS = {
    "model_type": "deepseek_v3",
    "vocab_size": 2048,
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 0,
    "num_nextn_predict_layers": 0,
    "n_routed_experts": 32,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 512,
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("to", ["hf", "mtron"])
@pytest.mark.parametrize("sizes", [DENSE, EXPERTS], ids=["dense", "stacked experts"])
def test_memory_stays_bounded(tmp_path, sizes, to):
    family = FAMILIES[sizes["model_type"]]
    model = family.from_hf(sizes, [])
    one = np.ones((), np.float32)
    arrays = {
        f"param/{name}": LocalArray.whole(np.broadcast_to(one, shape))
        for name, shape in family.tensors(model, 10**4).ours.items()
    }
    pool = mtron_ckpt.StagingPool(limit_bytes=2**28)
    metadata = Metadata(step=0, config={"model": model})
    mtron_ckpt.save(tmp_path / "root", arrays, metadata, pool=pool).wait()
    source = tmp_path / "root"
    if to == "mtron":
        source = tmp_path / "hf"
        convert(tmp_path / "root", source, to="hf")
    code = (
        "import sys, mtron_ckpt\n"
        "report = mtron_ckpt.convert(sys.argv[1], sys.argv[2], to=sys.argv[3])\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "(peak,) = (int(line.split()[1]) for line in lines if line.startswith('VmHWM'))\n"
        "print(report.num_bytes, peak * 1024)\n"
    )
    arguments = [sys.executable, "-c", code, str(source), str(tmp_path / "out"), to]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    num_bytes, peak = map(int, done.stdout.split())
    bound = 2 * max(array.data.nbytes for array in arrays.values()) + 256 * 2**20
    assert num_bytes > 2 * bound
    assert peak < bound
