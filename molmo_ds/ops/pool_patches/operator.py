"""The operator of `pool_patches` that autograd and the compiler see; `triton.py` and `cuda.py` bring its kernels.

Shapes: M windows of W patches, H heads of width d.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Three = tuple[Tensor, Tensor, Tensor]
Forward = Callable[[Tensor, Tensor, Tensor, Tensor, bool], Tensor]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool], Three]


class Kernels(NamedTuple):
    """One implementation: both take contiguous tensors, and the backward pass the gradient first."""

    forward: Forward
    backward: Backward


KERNELS: dict[str, Kernels] = {}  # "triton" or "cuda" -> what runs


@torch.library.custom_op("molmo_ds::pool_patches", mutates_args=())
def pool(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Tensor,
    masked: bool,
    by: str,
) -> Tensor:
    """q [M, H, d], k and v [M, W, H, d], windows [M, W] -> [M, H, d], by the kernels of that name."""
    tensors = [x.contiguous() for x in (q, k, v, windows)]
    return KERNELS[by].forward(*tensors, masked)


@pool.register_fake
def _pool_shape(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Tensor,
    masked: bool,
    by: str,
) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.custom_op("molmo_ds::pool_patches_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Tensor,
    masked: bool,
    by: str,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = [x.contiguous() for x in (grad, q, k, v, windows)]
    return KERNELS[by].backward(*tensors, masked)


@_backward.register_fake
def _backward_shape(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Tensor,
    masked: bool,
    by: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    q, k, v, windows, masked, by = inputs
    ctx.save_for_backward(q, k, v, windows)
    ctx.masked = masked
    ctx.by = by


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _backward(grad, *ctx.saved_tensors, ctx.masked, ctx.by)
    return *grads, None, None, None


pool.register_autograd(_gradients, setup_context=_save)
