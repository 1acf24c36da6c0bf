"""Named tensors in one block of memory, which goes to another process at the price of one tensor.

Torch sends each tensor that a worker process makes by a file descriptor of its own, for which the receiver connects to
the sender. A batch has a dozen tensors, and the connections took a tenth of a small model's step.
"""

import torch
from torch import Tensor

ALIGNED = 64  # bytes; each tensor begins at a multiple of it

Place = tuple[str, torch.dtype, torch.Size, int]  # name, type, shape, first byte


def pack(tensors: dict[str, Tensor]) -> tuple[list[Place], Tensor]:
    """A copy of tensors of one device: their places, and the block, uint8 [bytes]."""
    places = []
    end = 0
    for name, tensor in tensors.items():
        places.append((name, tensor.dtype, tensor.shape, end))
        end += -(-tensor.nbytes // ALIGNED) * ALIGNED
    device = next(iter(tensors.values())).device
    block = torch.empty(end, dtype=torch.uint8, device=device)
    for name, _, _, first in places:
        its_bytes = tensors[name].reshape(-1).view(torch.uint8)
        block[first : first + len(its_bytes)] = its_bytes
    return places, block


def unpack(places: list[Place], block: Tensor) -> dict[str, Tensor]:
    """The tensors by name, as views of the block."""
    tensors = {}
    for name, dtype, shape, first in places:
        size = shape.numel() * dtype.itemsize
        tensors[name] = block[first : first + size].view(dtype).view(shape)
    return tensors
