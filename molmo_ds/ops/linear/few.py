"""A few rows, as of a step of decoding, times a weight that lies in memory column by column and is read once.

By `few.cpp`. A row's numbers do not depend on how many others there are. Shapes: R rows, K inputs, N outputs.
"""

from torch import Tensor

from molmo_ds.ops.cpu_library import INTEGER, POINTER, Kernel, takes

MOST = 12  # rows; their sums fit into the registers
_run = Kernel("few_rows", *[POINTER] * 4, *[INTEGER] * 3)


def usable(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel takes x [..., K] and weight [N, K]."""
    outputs, inputs = weight.shape
    if weight.stride(0) != 1 or weight.stride(1) != outputs or x.shape[-1] != inputs:
        return False
    return 0 < x.numel() <= MOST * inputs and takes(x, weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., K], weight [N, K], bias [N] -> [..., N], outside autograd."""
    *before, inputs = x.shape
    outputs = weight.shape[0]
    out = x.new_empty(*before, outputs)
    x = x.contiguous()
    added = None if bias is None else bias.data_ptr()
    pointers = (x.data_ptr(), weight.data_ptr(), added, out.data_ptr())
    _run(*pointers, x.numel() // inputs, inputs, outputs)
    return out
