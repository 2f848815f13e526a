import numpy as np
import pytest

from mtron_data import GPTDataset

torch = pytest.importorskip("torch")


def test_tensors_share_the_memory_of_the_arrays(prepared):
    from mtron_data.torch_io import to_torch

    batch = GPTDataset(prepared, 32, seed=1).batch([0, 1])
    tensors = to_torch(batch)
    assert tensors.keys() == batch.keys()
    dtypes = {"loss_mask": torch.float32, "cu_seqlens": torch.int32}
    for name, array in batch.items():
        if name == "max_seqlen":
            assert tensors[name] == array
            continue
        assert tensors[name].dtype == dtypes.get(name, torch.int64)
        assert np.shares_memory(tensors[name].numpy(), array)
        assert np.array_equal(tensors[name].numpy(), array)
