"""Attention of queries over the panels of keys that they see, by the CPU's own kernels (`attention.cpp`).

Shapes: B sequences, H heads, G key-value heads, T queries, S keys, d head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from molmo_ds.ops.cpu_library import POINTER, Kernel, takes
from molmo_ds.ops.tree_attention.panels import QUERIES, Panels

_forward = Kernel("attention", *[POINTER] * 10)
_backward = Kernel("attention_backward", *[POINTER] * 14)


def usable(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels take these: float32 on a CPU."""
    return takes(q, k, v)


def attention(q: Tensor, k: Tensor, v: Tensor, panels: Panels) -> Tensor:
    """q [B, H, T, d], k and v [B, G, S, d] -> [B, H, T, d], which lies in memory token by token."""
    if torch.is_grad_enabled():
        return _Attention.apply(q, k, v, panels)
    out, _ = _run(_rows(q), _rows(k), _rows(v), panels)
    return out


def _cpu(numbers: Sequence) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _by_token(x: Tensor) -> Tensor:
    # as a projection leaves it, or takes it
    batch, heads, tokens, width = x.shape
    return x.new_empty(batch, tokens, heads, width).transpose(1, 2)


def _numbers(tensors: Sequence[Tensor], q: Tensor, k: Tensor, panels: Panels) -> tuple[Tensor, ...]:
    # strides, sizes (`Sizes` of attention.cpp), and its `Plan`
    strides = _cpu([x.stride()[:3] for x in tensors])
    batch, heads, queries, width = q.shape
    _, groups, keys, _ = k.shape
    blocks = -(-queries // QUERIES)
    assert panels.begins.shape == (batch, blocks + 1), "a plan of another batch"
    sizes = _cpu([batch, heads, groups, queries, keys, width])
    return strides, sizes, panels.begins, panels.panels, panels.words


def _pointers(*tensors: Tensor) -> list[int]:
    return [x.data_ptr() for x in tensors]


def _run(q: Tensor, k: Tensor, v: Tensor, panels: Panels) -> tuple[Tensor, Tensor]:
    # (the result, log-sum-exp [B, H, T])
    out = _by_token(q)
    sums = q.new_empty(q.shape[:3])
    numbers = _numbers((q, k, v, out), q, k, panels)
    _forward(*_pointers(q, k, v, out, sums, *numbers))
    return out, sums


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, panels: Panels) -> Tensor:
        q = _rows(q)
        k = _rows(k)
        v = _rows(v)
        out, sums = _run(q, k, v, panels)
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.panels = panels
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums = ctx.saved_tensors
        slopes = [_by_token(x) for x in (q, k, v)]
        given = (_rows(of_out), q, k, v, out)
        numbers = _numbers((*given, *slopes), q, k, ctx.panels)
        _backward(*_pointers(*given, sums, *slopes, *numbers))
        return *slopes, None
