"""Rotary positions on the CPU in one pass (`rope.cpp`)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from molmo_ds.ops.cpu_library import INTEGER, POINTER, Kernel, takes

_run = Kernel("rope", *[POINTER] * 4, *[INTEGER] * 11)


def usable(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether the kernel takes these."""
    return takes(x, cos, sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, T, d] rotated by the tables [B, T, d]; contiguous."""
    if torch.is_grad_enabled():
        return _Rotate.apply(x, cos, sin)
    return _turned(x, cos, sin)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, heads, tokens, width = x.shape
    if back:  # the gradient lies as the projection's result does, by tokens
        out = x.new_empty(batch, tokens, heads, width).transpose(1, 2)
    else:
        out = x.new_empty(x.shape)
    cos = cos.expand(batch, tokens, width).contiguous()
    sin = sin.expand(batch, tokens, width).contiguous()
    pointers = (x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr())
    places = (*x.stride()[:3], *out.stride()[:3])
    _run(*pointers, batch, heads, tokens, width, *places, back)
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(of_out, cos, sin, back=True), None, None
