"""x times a weight matrix, by whichever library has the faster product on this CPU.

PyTorch multiplies float32 matrices with MKL, which leaves half of an AMD processor's AVX-512 unused; oneDNN, also in
PyTorch, does not. Shapes: R rows, K inputs, N outputs.
"""

import functools

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from molmo_ds.ops import dispatch

ROWS, PRODUCT = 64, 2**21  # below these many rows or multiplications MKL is as fast (AMD EPYC, 1 thread)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K], weight [N, K], bias [N] -> x @ weight.T + bias, [..., N]."""
    return dispatch.call("linear", x, weight, bias)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [R, K] @ b.T for b [N, K], outside autograd; either may be a transposed view."""
    if dispatch.allows("cpu") and _usable(a, b, None):
        return _onednn(a, b)
    return a @ b.T


@dispatch.implements("linear", "torch")
def _torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


@functools.cache
def _is_faster() -> bool:
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _usable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    rows = x.numel() // max(x.shape[-1], 1)
    large = rows >= ROWS and rows * weight.numel() >= PRODUCT
    return large and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling() and _is_faster()


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    # a [R, K], b [N, K] -> a @ b.T + bias
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):  # noqa: ANN001, ANN205
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_out):  # noqa: ANN001, ANN205
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        of_x = _onednn(of_out, weight.T) if needs[0] else None
        of_weight = _onednn(of_out.T, x.T) if needs[1] else None
        return of_x, of_weight, of_out.sum(0) if needs[2] else None


@dispatch.implements("linear", "cpu", _usable)
def _cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)
