"""CLIP's activation on the CPU in one pass forward and one back (`quick_gelu.cpp`)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from molmo_ds.ops.cpu_library import INTEGER, POINTER, Kernel, takes

_forward = Kernel("quick_gelu", *[POINTER] * 2, INTEGER)
_backward = Kernel("quick_gelu_backward", *[POINTER] * 3, INTEGER)


def usable(x: Tensor) -> bool:
    """Whether the kernels take this."""
    return takes(x)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) of any shape."""
    return _QuickGelu.apply(x) if torch.is_grad_enabled() else _run(x.contiguous())


def _run(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    _forward(x.data_ptr(), out.data_ptr(), x.numel())
    return out


class _QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return _run(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        of_x = torch.empty_like(x)
        of_out = of_out.contiguous()
        _backward(of_out.data_ptr(), x.data_ptr(), of_x.data_ptr(), x.numel())
        return of_x
