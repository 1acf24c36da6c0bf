"""The gated activation on the CPU in one pass forward and one back (`swiglu.cpp`)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from molmo_ds.ops.cpu_library import INTEGER, POINTER, Kernel, takes

_forward = Kernel("swiglu", *[POINTER] * 3, INTEGER)
_backward = Kernel("swiglu_backward", *[POINTER] * 5, INTEGER)


def usable(gate: Tensor, up: Tensor) -> bool:
    """Whether the kernels take these: copies of halves of one tensor, as experts have, would cost what is gained."""
    whole = gate.shape == up.shape and gate.is_contiguous() and up.is_contiguous()
    return whole and takes(gate, up)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both [..., I]."""
    if torch.is_grad_enabled():
        return _Gated.apply(gate, up)
    return _run(gate, up)


def _run(gate: Tensor, up: Tensor) -> Tensor:
    out = torch.empty_like(gate)
    _forward(gate.data_ptr(), up.data_ptr(), out.data_ptr(), out.numel())
    return out


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _run(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        of_gate = torch.empty_like(gate)
        of_up = torch.empty_like(up)
        tensors = (of_out.contiguous(), gate, up, of_gate, of_up)
        _backward(*(tensor.data_ptr() for tensor in tensors), gate.numel())
        return of_gate, of_up
