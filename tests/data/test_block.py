"""A batch goes to another process in one block of memory, and is the same there."""

import pickle

import torch

from molmo_ds.block import ALIGNED, pack, unpack
from molmo_ds.data.sample.selected import selected
from molmo_ds.testing.synthetic import sequence
from molmo_ds.testing.text_sample import text_sample


def same(here: torch.Tensor, there: torch.Tensor) -> bool:
    """Type, shape and every byte."""
    first, second = (x.contiguous().view(-1).view(torch.uint8) for x in (here, there))
    return here.dtype == there.dtype and here.shape == there.shape and torch.equal(first, second)


def test_every_kind_of_tensor_comes_back() -> None:
    tensors = {
        "scalar": torch.tensor(7),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.zeros(0, 3, dtype=torch.int64),
        "turned": torch.arange(6, dtype=torch.int32).view(2, 3).T,
        "not finite": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "half": torch.tensor([[1.5]], dtype=torch.bfloat16),
        "truth": torch.tensor([True, False, True]),
    }
    places, block = pack(tensors)
    assert len(block) == 6 * ALIGNED  # the empty one takes nothing
    found = unpack(places, block)
    assert list(found) == list(tensors)
    assert all(same(tensors[name], found[name]) for name in tensors)


def test_a_batch_and_a_sample_are_one_storage_in_another_process() -> None:
    plain = text_sample(torch.arange(9))
    picked = selected(plain, 100, torch.arange(0), torch.zeros(0, 0))  # has two numbers as well
    for there in (sequence(0, 1), plain, picked):
        back = pickle.loads(pickle.dumps(there))
        assert type(back) is type(there)
        tensors = {name: x for name, x in vars(there).items() if isinstance(x, torch.Tensor)}
        assert all(same(tensor, getattr(back, name)) for name, tensor in tensors.items())
        assert len({getattr(back, name).untyped_storage().data_ptr() for name in tensors}) == 1
        others = vars(there).keys() - tensors.keys()
        assert all(getattr(back, name) == getattr(there, name) for name in others)
