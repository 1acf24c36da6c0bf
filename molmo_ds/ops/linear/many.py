"""Many rows times a matrix by our own kernel (`many.cpp`), whose bits depend neither on threads nor on other rows.

Shapes: R rows, K inputs, N outputs.
"""

from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops.cpu_library import INTEGER, POINTER, Kernel, takes

_run = Kernel("many_rows", *[POINTER] * 4, *[INTEGER] * 8)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [R, K] @ b.T + bias for b [N, K] and bias [N], outside autograd; a and b may lie in any order.

    By PyTorch where the kernel cannot read them, as under what records operations.
    """
    if not takes(a, b) or not a.shape[1]:
        return F.linear(a, b, bias)
    out = a.new_empty(a.shape[0], b.shape[0])
    _multiply(a, b, bias, out, False)
    return out


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total [R, N] += a [R, K] @ b.T for b [N, K]; by PyTorch also where total does not lie row by row."""
    if not takes(total, a, b) or not a.shape[1] or not total.is_contiguous():
        total += F.linear(a, b)
    else:
        _multiply(a, b, None, total, True)


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor, add: bool) -> None:
    if bias is not None:
        bias = bias.contiguous()
    added = None if bias is None else bias.data_ptr()
    pointers = (a.data_ptr(), b.data_ptr(), added, out.data_ptr())
    _run(*pointers, *a.stride(), *b.stride(), *a.shape, b.shape[0], add)
