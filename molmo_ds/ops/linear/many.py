"""Many rows times a matrix by our own kernel (`many.cpp`), whose bits depend neither on threads nor on other rows.

Shapes: R rows, K inputs, N outputs.
"""

from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops.cpu_library import INTEGER, POINTER, Kernel, takes

_run = Kernel("many_rows", *[POINTER] * 5, *[INTEGER] * 8)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [R, K] @ b.T + bias for b [N, K] and bias [N], outside autograd; a and b may lie in any order.

    By PyTorch where the kernel cannot read them, as under what records operations.
    """
    if not takes(a, b) or not a.shape[1]:
        return F.linear(a, b, bias)
    out = a.new_empty(a.shape[0], b.shape[0])
    _multiply(a, b, out, bias=bias)
    return out


def product_and_sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(a [R, K] @ b.T for b [N, K], the sums [R] of a's rows), where a's steps are not neighbours, a read once."""
    if not takes(a, b) or not a.shape[1] or a.stride(1) == 1:
        return product(a, b), a.sum(1)
    out = a.new_empty(a.shape[0], b.shape[0])
    sums = a.new_zeros(a.shape[0])
    _multiply(a, b, out, sums=sums)
    return out, sums


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total [R, N] += a [R, K] @ b.T for b [N, K]; by PyTorch also where total does not lie row by row."""
    if not takes(total, a, b) or not a.shape[1] or not total.is_contiguous():
        total += F.linear(a, b)
    else:
        _multiply(a, b, total, add=True)


def _multiply(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    bias: Tensor | None = None,
    sums: Tensor | None = None,
    add: bool = False,
) -> None:
    if bias is not None:
        bias = bias.contiguous()
    there = (None if x is None else x.data_ptr() for x in (a, b, bias, out, sums))
    _run(*there, *a.stride(), *b.stride(), *a.shape, b.shape[0], add)
