"""The linear layer on the CPU by our own kernel, MKL or oneDNN, whichever multiplies faster; under autocast in bf16.

PyTorch multiplies float32 matrices with MKL, which is not the fastest on every processor; oneDNN is in PyTorch too,
and `many.cpp` is ours (`library.py` measures). Which of them runs depends on sizes, and sizes differ between ranks; the
autograd graph must not: one Function holds all, so that a weight and its bias get their gradients in one order on
every rank (ZeRO-2 adds gradients in the order in which they arrive). Under autocast another Function casts x once, for
both passes, and keeps no cast of the weight, which ZeRO-3 may release. Shapes: R rows, K inputs, N outputs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from molmo_ds.ops import dispatch
from molmo_ds.ops.cpu_library import PLAIN
from molmo_ds.ops.linear import few, library, many

# below these many rows or multiplications MKL is as fast (AMD EPYC, 1 thread)
ROWS = 64
PRODUCT = 2**21
HALF = torch.bfloat16


def usable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether one Function may hold both products: types and devices decide, hence the configuration alone."""
    # a quantised weight has products of its own
    known = weight.dtype == torch.float32 and type(weight) in PLAIN and x.is_cpu
    if not known or torch.compiler.is_compiling():
        return False
    if not torch.is_autocast_enabled("cpu"):
        return x.dtype == torch.float32
    return torch.get_autocast_dtype("cpu") == HALF and x.dtype in (torch.float32, HALF)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., K], weight [N, K], bias [N] -> [..., N]."""
    if not torch.is_grad_enabled() and x.numel() < ROWS * x.shape[-1]:
        if few.usable(x, weight) and not torch.is_autocast_enabled("cpu"):
            return few.linear(x, weight, bias)
        # MKL multiplies so few rows in any case; views and checks would cost 2 % of decoding
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    learns = _Half.apply if torch.is_autocast_enabled("cpu") else _Linear.apply
    run = learns if torch.is_grad_enabled() else product
    return run(rows, weight, bias).view(*x.shape[:-1], -1)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [R, K] @ b.T + bias for b [N, K] and bias [N], outside autograd; a and b may be transposed views."""
    return library.in_fp32(a, b, bias) if _is_large(a, b) else F.linear(a, b, bias)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total [R, N] += a [R, K] @ b.T for b [N, K], outside autograd; sums over rows, as gradients of weights are."""
    if _are_own_sums(a, b):
        many.add_product(total, a, b)
    else:
        total += product(a, b)


def _product_and_sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    # of a weight and of its bias
    if _are_own_sums(a, b):
        return many.product_and_sums(a, b)
    return product(a, b), a.sum(1)


def _are_own_sums(a: Tensor, b: Tensor) -> bool:
    return _is_large(a, b) and library.way("sums") is many.product


def _is_large(a: Tensor, b: Tensor) -> bool:
    rows = a.shape[0]
    large = rows >= ROWS and rows * b.numel() >= PRODUCT and a.dtype == torch.float32
    casts = torch.is_autocast_enabled("cpu")
    return large and not casts and dispatch.allows("cpu") and usable(a, b, None)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        of_x = product(of_out, weight.T) if needs[0] else None
        if needs[1] and needs[2]:
            return of_x, *_product_and_sums(of_out.T, x.T)
        of_weight = product(of_out.T, x.T) if needs[1] else None
        of_bias = of_out.sum(0) if needs[2] else None
        return of_x, of_weight, of_bias


class _Half(torch.autograd.Function):
    """As autocast: products of bf16, gradients of the weight's and the input's own types."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        short = x.to(HALF)
        ctx.save_for_backward(short, weight)
        ctx.given = x.dtype
        return F.linear(short, weight.to(HALF), None if bias is None else bias.to(HALF))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        short, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        of_x = torch.mm(of_out, weight.to(HALF)).to(ctx.given) if needs[0] else None
        of_weight = torch.mm(of_out.T, short).to(weight.dtype) if needs[1] else None
        of_bias = of_out.sum(0, dtype=weight.dtype) if needs[2] else None
        return of_x, of_weight, of_bias
