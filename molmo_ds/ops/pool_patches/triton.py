"""Pooling attention with query, keys and values of one window and several heads in registers.

The backward pass computes the shares again. Shapes: M windows of W patches, H heads of width d; a program has BW >= W
patches, BH heads and BD >= d columns. All arithmetic is float32 whatever the tensors hold. No kernel uses atomics: a
result is the same bit for bit each time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.pool_patches import operator

IN_REGISTERS = 4096  # numbers of keys, and of values, that a program holds at most


def usable(q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool) -> bool:
    """Whether the kernels can take these: by devices and types."""
    return dispatch.on_gpu(q, k, v)


def pool_patches(q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool) -> Tensor:
    """q [M, H, d], k and v [M, W, H, d], windows [M, W] -> [M, H, d]."""
    return operator.pool(q, k, v, windows, masked, "triton")


def launch(k: Tensor, masked: bool) -> tuple[tuple[int, int], tuple]:
    """Grid and constants (d, H, W, MASKED, BW, BH, BD) of both kernels for keys k [M, W, H, d]."""
    windows, size, heads, width = k.shape
    padded = triton.next_power_of_2(size)
    block = triton.next_power_of_2(width)
    together = max(1, min(triton.next_power_of_2(heads), IN_REGISTERS // (padded * block)))
    grid = (windows, triton.cdiv(heads, together))
    return grid, (width, heads, size, masked, padded, together, block)


def _forward(q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool) -> Tensor:
    out = torch.empty_like(q)
    grid, constants = launch(k, masked)
    pool_kernel[grid](q, k, v, windows, out, q.shape[2] ** -0.5, *constants)
    return out


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool
) -> tuple[Tensor, Tensor, Tensor]:
    out = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    grid, constants = launch(k, masked)
    pool_backward_kernel[grid](grad, q, k, v, windows, *out, q.shape[2] ** -0.5, *constants)
    return out


operator.KERNELS["triton"] = operator.Kernels(_forward, _backward)


@triton.jit
def _window_shares(
    q,
    k,
    windows,
    m,
    h,
    scale,
    d: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    MASKED: tl.constexpr,
    BW: tl.constexpr,
    BH: tl.constexpr,
    BD: tl.constexpr,
):
    # -> query [BH, BD], keys [BW, BH, BD], softmax over the window [BW, BH], offsets and mask of keys
    w = tl.arange(0, BW)
    e = tl.arange(0, BD)
    there = w < W
    if MASKED:
        there = tl.load(windows + m * W + w, mask=there, other=-1) >= 0
    real = (h < H)[:, None] & (e < d)[None, :]
    query = tl.load(q + (m * H + h)[:, None] * d + e[None, :], mask=real, other=0.0).to(tl.float32)
    offset = ((m * W + w)[:, None, None] * H + h[None, :, None]) * d + e[None, None, :]
    inside = (w < W)[:, None, None] & real[None, :, :]
    key = tl.load(k + offset, mask=inside, other=0.0).to(tl.float32)
    score = tl.where(there[:, None], tl.sum(key * query[None, :, :], axis=2) * scale, -float("inf"))
    top = tl.max(score, axis=0)
    share = tl.exp(score - tl.where(top == -float("inf"), 0.0, top)[None, :])
    total = tl.sum(share, axis=0)
    return query, key, share / tl.where(total == 0.0, 1.0, total)[None, :], offset, inside, real


@triton.jit
def pool_kernel(
    q,
    k,
    v,
    windows,
    out,
    scale,
    d: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    MASKED: tl.constexpr,
    BW: tl.constexpr,
    BH: tl.constexpr,
    BD: tl.constexpr,
):
    # one program per (window, BH heads)
    m = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    e = tl.arange(0, BD)
    _, _, share, offset, inside, real = _window_shares(
        q, k, windows, m, h, scale, d, H, W, MASKED, BW, BH, BD
    )
    value = tl.load(v + offset, mask=inside, other=0.0).to(tl.float32)
    pooled = tl.sum(share[:, :, None] * value, axis=0)
    tl.store(
        out + (m * H + h)[:, None] * d + e[None, :], pooled.to(out.dtype.element_ty), mask=real
    )


@triton.jit
def pool_backward_kernel(
    grad,
    q,
    k,
    v,
    windows,
    of_q,
    of_k,
    of_v,
    scale,
    d: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    MASKED: tl.constexpr,
    BW: tl.constexpr,
    BH: tl.constexpr,
    BD: tl.constexpr,
):
    # one program per (window, BH heads); the shares are recomputed
    m = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    e = tl.arange(0, BD)
    query, key, share, offset, inside, real = _window_shares(
        q, k, windows, m, h, scale, d, H, W, MASKED, BW, BH, BD
    )
    row = (m * H + h)[:, None] * d + e[None, :]
    value = tl.load(v + offset, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(grad + row, mask=real, other=0.0).to(tl.float32)
    of_share = tl.sum(value * slope[None, :, :], axis=2)
    of_score = share * (of_share - tl.sum(share * of_share, axis=0)[None, :]) * scale
    tl.store(
        of_q + row, tl.sum(of_score[:, :, None] * key, axis=0).to(of_q.dtype.element_ty), mask=real
    )
    tl.store(
        of_k + offset,
        (of_score[:, :, None] * query[None, :, :]).to(of_k.dtype.element_ty),
        mask=inside,
    )
    tl.store(
        of_v + offset,
        (share[:, :, None] * slope[None, :, :]).to(of_v.dtype.element_ty),
        mask=inside,
    )
