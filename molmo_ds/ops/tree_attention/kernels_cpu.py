"""Attention of blocks of queries over the keys that they see, by the CPU's own kernels (`attention.cpp`).

PyTorch's, which are as fast where every query sees every key, take a quarter more time for the same blocks: they want
a group's heads folded into the queries, runs of keys joined, and a mask for each head.

Shapes: B sequences, H heads, G key-value heads, T queries, S keys, d head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from molmo_ds.ops.cpu_library import POINTER, Kernel, takes

PANEL = 32  # runs of keys begin at its multiples: as many are packed side by side, or half or a quarter of them
VECTOR = 16  # a head has a multiple of these
_forward = Kernel("attention", *[POINTER] * 9)
_backward = Kernel("attention_backward", *[POINTER] * 13)
Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Table:
    """Blocks as the kernels read them; `masks` are what the addresses among them point to."""

    # int64 [n, 6]: sequence, first query, end, first run, end, address of the mask or 0
    blocks: Tensor
    runs: Tensor  # int64 [m, 2]: first key, end
    masks: Sequence[Tensor] = ()


def table(blocks: Sequence[tuple[int, int, int, Runs]], masks: Sequence[Tensor] = ()) -> Table:
    """Of (sequence, first query, end, runs of keys) and, where there are masks, one [queries, keys] for each."""
    rows = []
    runs: list[tuple[int, int]] = []
    for number, (sequence, begin, end, seen) in enumerate(blocks):
        assert all(first % PANEL == 0 for first, _ in seen)
        assert all(last % PANEL == 0 for _, last in seen[:-1])
        address = masks[number].data_ptr() if masks else 0
        rows.append((sequence, begin, end, len(runs), len(runs) + len(seen), address))
        runs += seen
    return Table(_cpu(rows).view(-1, 6), _cpu(runs).view(-1, 2), masks)


def usable(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels take these: float32 on a CPU, heads of whole vectors."""
    return q.shape[-1] % VECTOR == 0 and takes(q, k, v)


def attention(q: Tensor, k: Tensor, v: Tensor, blocks: Table) -> Tensor:
    """q [B, H, T, d], k and v [B, G, S, d] -> [B, H, T, d], which lies in memory token by token."""
    if torch.is_grad_enabled():
        return _Attention.apply(q, k, v, blocks)
    return _run(*(_rows(x) for x in (q, k, v)), blocks)[0]


def _cpu(numbers: Sequence) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _by_token(x: Tensor) -> Tensor:
    # as a projection leaves it, or takes it
    batch, heads, tokens, width = x.shape
    return x.new_empty(batch, tokens, heads, width).transpose(1, 2)


def _numbers(tensors: Sequence[Tensor], q: Tensor, k: Tensor, blocks: Table) -> tuple[Tensor, ...]:
    # strides, sizes (`Sizes` of attention.cpp), blocks, runs
    strides = _cpu([x.stride()[:3] for x in tensors])
    batch, heads, queries, width = q.shape
    _, groups, keys, _ = k.shape
    number = len(blocks.blocks)
    sizes = _cpu([batch, heads, groups, queries, keys, width, number])
    return strides, sizes, blocks.blocks, blocks.runs


def _pointers(*tensors: Tensor) -> list[int]:
    return [x.data_ptr() for x in tensors]


def _run(q: Tensor, k: Tensor, v: Tensor, blocks: Table) -> tuple[Tensor, Tensor]:
    # (the result, log-sum-exp [B, H, T])
    out = _by_token(q)
    sums = q.new_empty(q.shape[:3])
    numbers = _numbers((q, k, v, out), q, k, blocks)
    _forward(*_pointers(q, k, v, out, sums, *numbers))
    return out, sums


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: Table) -> Tensor:
        q, k, v = (_rows(x) for x in (q, k, v))
        out, sums = _run(q, k, v, blocks)
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.blocks = blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums = ctx.saved_tensors
        of_out = _rows(of_out)
        slopes = [_by_token(x) for x in (q, k, v)]
        for slope in slopes[1:]:  # each block adds to them
            slope.zero_()
        given = (of_out, q, k, v, out)
        numbers = _numbers((*given, *slopes), q, k, ctx.blocks)
        _backward(*_pointers(*given, sums, *slopes, *numbers))
        return *slopes, None
