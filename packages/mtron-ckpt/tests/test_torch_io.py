import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mtron_ckpt.torch_io import from_torch, to_torch  # noqa: E402

TYPES = [
    *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 4)])
def test_both_ways_keep_every_bit_without_a_copy(name, shape):
    dtype = getattr(torch, name)
    size = int(np.prod(shape)) * dtype.itemsize
    content = torch.randint(0, 2 if name == "bool" else 256, (size,), dtype=torch.uint8)
    tensor = content.view(dtype).reshape(shape)
    array = from_torch(tensor)
    assert array.dtype == np.dtype(getattr(ml_dtypes, name, None) or name)
    assert array.shape == shape
    assert array.tobytes() == content.numpy().tobytes()
    back = to_torch(array)
    assert back.dtype == dtype
    assert back.shape == shape
    assert back.data_ptr() == tensor.data_ptr()


def test_values_agree_with_torch():
    tensor = torch.tensor([1.5, -2.0, 448.0])
    for name in ("bfloat16", "float8_e4m3fn"):
        converted = from_torch(tensor.to(getattr(torch, name)))
        assert converted.astype(np.float32).tolist() == [1.5, -2.0, 448.0]


def test_views_and_gradients():
    base = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    for tensor in (base.T, base[:, ::2], torch.nn.Parameter(base.float())):
        assert torch.equal(to_torch(from_torch(tensor)), tensor.detach())
    complex_ = torch.tensor([1 + 2j]).conj()
    assert from_torch(complex_)[0] == 1 - 2j


def test_arrays_that_torch_cannot_share_are_copied():
    array = np.arange(4, dtype=np.float32)
    array.setflags(write=False)
    for value in (array, np.arange(4.0)[::-1], np.arange(4, dtype=">f4")):
        assert to_torch(value).tolist() == value.tolist()


def test_tensors_without_a_counterpart_are_refused():
    with pytest.raises(ValueError, match=r"tensor: cannot be stored, got .*[Ss]parse"):
        from_torch(torch.ones(2).to_sparse())
