"""A prompt on its way from the front to the engine: a Sample as safetensors, HeMolmo's with its numbers as tensors."""

import torch
from safetensors.torch import load, save
from torch import Tensor

from molmo_ds.batch import Sample, SelectionSample

NUMBERS = ("query_token", "low_length")  # of a SelectionSample


def pack_sample(sample: Sample) -> bytes:
    """The bytes of a Sample."""
    parts = {
        name: part.contiguous() if isinstance(part, Tensor) else torch.tensor(part)
        for name, part in vars(sample).items()
    }
    return save(parts)


def read_sample(data: bytes) -> Sample:
    """The Sample of which `pack_sample` made the bytes."""
    parts = load(data)
    if NUMBERS[0] not in parts:
        return Sample(**parts)
    return SelectionSample(**parts | {name: int(parts[name]) for name in NUMBERS})
