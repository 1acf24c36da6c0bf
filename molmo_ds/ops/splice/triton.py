"""Token embedding with image features, one pass over the tokens: no concatenated table, no boolean index, no sync.

Shapes: B sequences, T tokens, D width, E rows of the base table, A rows of the extra table, M image features; BLOCK
columns per program. All arithmetic is float32 whatever the tensors hold. No kernel uses atomics: a result is the same
bit for bit each time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from molmo_ds.ops import dispatch


def usable(
    input_ids: Tensor, base: Tensor, extra: Tensor, features: Tensor, positions: Tensor
) -> bool:
    """Whether the kernels can take these: by devices and types."""
    return dispatch.on_gpu(base, extra, features)


def splice(
    input_ids: Tensor, base: Tensor, extra: Tensor, features: Tensor, positions: Tensor
) -> Tensor:
    """input_ids [B, T], base [E, D], extra [A, D], features [M, D], positions [M] -> [B, T, D]."""
    return _forward(input_ids, base, extra, features, positions)


@torch.library.custom_op("molmo_ds::splice", mutates_args=())
def _forward(
    input_ids: Tensor, base: Tensor, extra: Tensor, features: Tensor, positions: Tensor
) -> Tensor:
    tokens = input_ids.numel()
    width = base.shape[1]
    # features that go nowhere share the row after the last
    at = torch.where(positions < 0, tokens, positions)
    row_at = torch.full((tokens + 1,), -1, dtype=torch.int32, device=base.device)
    row_at[at] = torch.arange(len(at), dtype=torch.int32, device=base.device)
    out = base.new_empty(*input_ids.shape, width)
    splice_kernel[_grid(tokens, width)](
        input_ids.contiguous(),
        base.contiguous(),
        extra.contiguous(),
        features.contiguous(),
        row_at,
        out,
        base.shape[0],
        width,
        _block(width),
    )
    return out


@_forward.register_fake
def _forward_shape(
    input_ids: Tensor, base: Tensor, extra: Tensor, features: Tensor, positions: Tensor
) -> Tensor:
    return base.new_empty(*input_ids.shape, base.shape[1])


@torch.library.custom_op("molmo_ds::splice_backward", mutates_args=())
def _backward(
    grad: Tensor,
    input_ids: Tensor,
    positions: Tensor,
    base: Tensor,
    extra: Tensor,
    features: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = base.shape
    of_base, of_extra, of_features = _backward_shape(
        grad, input_ids, positions, base, extra, features, needs
    )
    grad = grad.contiguous().view(-1, width)
    ids = input_ids.flatten()
    if needs[0]:
        words, order = ids.sort(stable=True)
        ends = torch.searchsorted(words, words, right=True)
        of_base.zero_()
        base_backward_kernel[_grid(len(words), width)](
            grad, words, order, ends, of_base, rows, width, _block(width)
        )
    # few words, each many times (the image tokens): a matrix product of ones and zeros
    if needs[1]:
        chosen = (ids - rows)[None] == torch.arange(len(extra), device=ids.device)[:, None]
        of_extra.copy_(chosen.to(grad.dtype) @ grad)
    if needs[2]:
        at = positions.contiguous()
        features_backward_kernel[_grid(len(at), width)](grad, at, of_features, width, _block(width))
    return of_base, of_extra, of_features


@_backward.register_fake
def _backward_shape(
    grad: Tensor,
    input_ids: Tensor,
    positions: Tensor,
    base: Tensor,
    extra: Tensor,
    features: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = [x.shape if need else (0,) for x, need in zip((base, extra, features), needs)]
    return base.new_empty(sizes[0]), extra.new_empty(sizes[1]), features.new_empty(sizes[2])


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input_ids, base, extra, features, positions = inputs
    ctx.save_for_backward(input_ids, positions, base, extra, features)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[1:4])
    grads = _backward(grad, *ctx.saved_tensors, needs)
    return None, *(g if need else None for g, need in zip(grads, needs)), None


_forward.register_autograd(_gradients, setup_context=_save)


def _block(width: int) -> int:
    return min(1024, triton.next_power_of_2(width))


def _grid(rows: int, width: int) -> tuple[int, int]:
    return rows, triton.cdiv(width, _block(width))


@triton.jit
def splice_kernel(ids, base, extra, features, row_at, out, E, D, BLOCK: tl.constexpr):
    # one program per (token, BLOCK)
    token = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < D
    word = tl.load(ids + token)
    row = tl.load(row_at + token).to(tl.int64)
    table = tl.where(word < E, base + word * D, extra + (word - E) * D)
    value = tl.load(table + c, mask=inside, other=0.0).to(tl.float32)
    if row >= 0:
        value += tl.load(features + row * D + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * D + c, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def features_backward_kernel(grad, positions, out, D, BLOCK: tl.constexpr):
    # one program per (feature, BLOCK)
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < D
    at = tl.load(positions + row)
    value = tl.load(grad + tl.where(at < 0, 0, at) * D + c, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(at < 0, 0.0, value)
    tl.store(out + row * D + c, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def base_backward_kernel(grad, words, order, ends, out, E, D, BLOCK: tl.constexpr):
    # one program per (place in the sorted words, BLOCK); the first of equal words adds up all of them, in order
    place = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < D
    word = tl.load(words + place)
    before = tl.load(words + tl.maximum(place - 1, 0))
    end = tl.load(ends + place)
    first = (word < E) & ((place == 0) | (before != word))
    j = tl.where(first, place, end)
    total = tl.zeros((BLOCK,), tl.float32)
    while j < end:
        total += tl.load(grad + tl.load(order + j) * D + c, mask=inside, other=0.0).to(tl.float32)
        j += 1
    if first:
        tl.store(out + word * D + c, total.to(out.dtype.element_ty), mask=inside)
