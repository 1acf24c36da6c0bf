"""Root-mean-square normalisation on the CPU in one pass forward and one back (`rms_norm.cpp`)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from molmo_ds.ops.cpu_library import FLOAT, INTEGER, POINTER, Kernel, takes

_forward = Kernel("rms_norm", *[POINTER] * 4, INTEGER, INTEGER, FLOAT)
_backward = Kernel("rms_norm_backward", *[POINTER] * 6, INTEGER, INTEGER)


def usable(x: Tensor, weight: Tensor, eps: float) -> bool:
    """Whether the kernels take these."""
    return takes(x, weight) and weight.shape[0] == x.shape[-1]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] / sqrt(mean(x^2) + eps) times weight [D]."""
    if torch.is_grad_enabled():
        return _Norm.apply(x, weight, eps)
    return _run(x.contiguous(), weight.contiguous(), eps)[0]


def _run(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    # (the result, what each row was multiplied by)
    width = x.shape[-1]
    rows = x.numel() // width
    out = torch.empty_like(x)
    scale = x.new_empty(rows)
    pointers = (x.data_ptr(), weight.data_ptr(), out.data_ptr(), scale.data_ptr())
    _forward(*pointers, rows, width, eps)
    return out, scale


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        weight = weight.contiguous()
        out, scale = _run(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        of_x = torch.empty_like(x)
        of_weight = torch.empty_like(weight)
        tensors = (of_out.contiguous(), x, weight, scale, of_x, of_weight)
        _backward(*(tensor.data_ptr() for tensor in tensors), len(scale), x.shape[-1])
        return of_x, of_weight, None
