"""mtron-ckpt alone, without torch: save, read back, notice damage."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

import mtron_ckpt
from mtron_ckpt import LocalArray, Metadata

assert importlib.util.find_spec("torch") is None
COMMAND = Path(sys.executable).parent / "mtron-ckpt"


def main() -> None:
    """Save two arrays and their metadata, read a block, then damage the file."""
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    scale = np.ones(4, dtype=ml_dtypes.bfloat16)
    metadata = Metadata(step=3, config={}, state={"cursor": {"sample": 7}}, layout={}, assets={})
    arrays = {
        "param/embed.weight": LocalArray.whole(weight),
        "param/norm.weight": LocalArray.whole(scale),
    }
    path = mtron_ckpt.save("run", arrays, metadata).wait()

    checkpoint = mtron_ckpt.open("run")
    assert checkpoint.step == 3
    assert checkpoint.state["cursor"] == {"sample": 7}
    block = checkpoint.read("param/embed.weight", (slice(1, 3), slice(0, 4)))
    assert np.array_equal(block, weight[1:3])
    assert checkpoint.read("param/norm.weight").dtype == ml_dtypes.bfloat16
    assert subprocess.run([COMMAND, "verify", path], check=False).returncode == 0

    (data,) = path.glob("data/*.zip")
    damaged = bytearray(data.read_bytes())
    damaged[damaged.index(weight.tobytes()[:16])] ^= 1
    data.write_bytes(damaged)
    assert subprocess.run([COMMAND, "verify", path], check=False).returncode != 0
    try:
        mtron_ckpt.open("run").read("param/embed.weight")
    except mtron_ckpt.CorruptCheckpoint:
        return
    raise AssertionError("a damaged array was read")


if __name__ == "__main__":
    main()
