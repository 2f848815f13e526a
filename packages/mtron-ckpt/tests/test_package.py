import subprocess
import sys

import mtron_ckpt


def test_every_public_name_resolves():
    assert sorted(mtron_ckpt.__all__) == sorted(set(mtron_ckpt.__all__))
    for name in mtron_ckpt.__all__:
        assert getattr(mtron_ckpt, name) is not None
    assert not hasattr(mtron_ckpt, "nonsense")


def test_nothing_but_torch_io_imports_torch(tmp_path):
    code = """
import sys
import mtron_ckpt
loaded = {"numpy", "zarr", "tensorstore", "torch"} & set(sys.modules)
assert not loaded, loaded
from mtron_ckpt.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
loaded = {"zarr", "tensorstore", "torch"} & set(sys.modules)
assert not loaded, loaded
for name in mtron_ckpt.__all__:
    getattr(mtron_ckpt, name)
import numpy
arrays = {"param/x": mtron_ckpt.LocalArray.whole(numpy.zeros(3))}
path = mtron_ckpt.save(sys.argv[1], arrays, mtron_ckpt.Metadata(step=1)).wait()
assert mtron_ckpt.verify(path).ok
mtron_ckpt.zarr_store(path)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
