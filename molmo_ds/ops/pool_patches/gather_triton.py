"""Gathering of patches into windows in one pass per layer; each patch is written once, the means with it.

Shapes: N crops, P patches per crop, S = P + class tokens, D ViT width, L layers, F = L * D, K kinds of padding,
M windows of W patches; BLOCK columns per program. All arithmetic is float32 whatever the tensors hold. No kernel uses
atomics: a result is the same bit for bit each time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from molmo_ds.ops import dispatch


def usable(
    layers: list[Tensor], shares: Tensor, pad_embed: Tensor, windows: Tensor, masked: bool
) -> bool:
    """Whether the kernels can take these: by devices and types."""
    return dispatch.on_gpu(*layers, shares, pad_embed)


def gather_patches(
    layers: list[Tensor], shares: Tensor, pad_embed: Tensor, windows: Tensor, masked: bool
) -> tuple[Tensor, Tensor]:
    """layers L x [N, S, D], shares [N, P, K], pad_embed [K, F], windows [M, W] -> [M, W, F] and means [M, F]."""
    return _forward(list(layers), shares, pad_embed, windows, masked)


@torch.library.custom_op("molmo_ds::gather_patches", mutates_args=())
def _forward(
    layers: list[Tensor], shares: Tensor, pad_embed: Tensor, windows: Tensor, masked: bool
) -> tuple[Tensor, Tensor]:
    features, means = _forward_shape(layers, shares, pad_embed, windows, masked)
    rows, width = layers[0].shape[1:]
    patches = shares.shape[1]
    weights = _mean_weights(windows, masked)
    shares = shares.float().contiguous()
    pad_embed = pad_embed.contiguous()
    windows = windows.contiguous()
    for i, layer in enumerate(layers):
        gather_kernel[(len(windows), triton.cdiv(width, _block(width)))](
            layer.contiguous(),
            shares,
            pad_embed,
            windows,
            weights,
            features,
            means,
            patches,
            rows,
            width,
            means.shape[1],
            i * width,
            windows.shape[1],
            pad_embed.shape[0],
            _block(width),
        )
    return features, means


@_forward.register_fake
def _forward_shape(
    layers: list[Tensor], shares: Tensor, pad_embed: Tensor, windows: Tensor, masked: bool
) -> tuple[Tensor, Tensor]:
    width = sum(x.shape[2] for x in layers)
    return layers[0].new_empty(*windows.shape, width), layers[0].new_empty(windows.shape[0], width)


@torch.library.custom_op("molmo_ds::gather_patches_backward", mutates_args=())
def _backward(
    of_features: Tensor,
    of_means: Tensor,
    windows: Tensor,
    masked: bool,
    count: int,
    sizes: list[int],
) -> list[Tensor]:
    crops, rows, width, patches = sizes
    slots, order = windows.flatten().sort(stable=True)
    starts = torch.searchsorted(slots, torch.arange(crops * patches + 1, device=windows.device))
    weights = _mean_weights(windows, masked)
    out = _backward_shape(of_features, of_means, windows, masked, count, sizes)
    of_features = of_features.contiguous()
    of_means = of_means.contiguous()
    for i in range(count):
        gather_backward_kernel[(crops * rows, triton.cdiv(width, _block(width)))](
            of_features,
            of_means,
            weights,
            order,
            starts,
            out[i],
            patches,
            rows,
            width,
            count * width,
            i * width,
            windows.shape[1],
            _block(width),
        )
    return out


@_backward.register_fake
def _backward_shape(
    of_features: Tensor,
    of_means: Tensor,
    windows: Tensor,
    masked: bool,
    count: int,
    sizes: list[int],
) -> list[Tensor]:
    return [of_features.new_empty(sizes[:3]) for _ in range(count)]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    layers, shares, pad_embed, windows, masked = inputs
    ctx.save_for_backward(shares, windows)
    ctx.masked = masked
    ctx.count = len(layers)
    ctx.dtype = pad_embed.dtype
    ctx.sizes = [*layers[0].shape, shares.shape[1]]


def _gradients(ctx: Any, of_features: Tensor, of_means: Tensor) -> tuple:
    shares, windows = ctx.saved_tensors
    layers = _backward(of_features, of_means, windows, ctx.masked, ctx.count, ctx.sizes)
    pad_embed = None
    if ctx.needs_input_grad[2]:
        flat = shares.flatten(0, 1).T.to(layers[0].dtype)
        patches = shares.shape[1]
        parts = [flat @ x[:, x.shape[1] - patches :].flatten(0, 1) for x in layers]
        pad_embed = torch.cat(parts, -1).to(ctx.dtype)
    return layers, None, pad_embed, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def _mean_weights(windows: Tensor, masked: bool) -> Tensor:
    # float32 [M]: 1 / number of patches of the mean
    if not masked:
        return torch.full(windows.shape[:1], 1 / windows.shape[1], device=windows.device)
    return 1 / (windows >= 0).sum(1).clamp(min=1).float()


def _block(width: int) -> int:
    return min(1024, triton.next_power_of_2(width))


@triton.jit
def gather_kernel(
    layer,
    shares,
    pad_embed,
    windows,
    weights,
    features,
    means,
    P,
    S,
    D,
    F,
    column,
    W: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # one program per (window, BLOCK) and one launch per layer, which fills columns `column` ... of the features
    m = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < D
    total = tl.zeros((BLOCK,), tl.float32)
    for w in tl.static_range(W):
        index = tl.load(windows + m * W + w)
        patch = tl.where(index < 0, 0, index)
        source = (patch // P) * S + (S - P) + patch % P
        value = tl.load(layer + source * D + c, mask=inside, other=0.0).to(tl.float32)
        for k in tl.static_range(K):
            share = tl.load(shares + patch * K + k)
            value += share * tl.load(pad_embed + k * F + column + c, mask=inside, other=0.0).to(
                tl.float32
            )
        value = tl.where(index < 0, 0.0, value)
        total += value
        tl.store(
            features + (m * W + w) * F + column + c,
            value.to(features.dtype.element_ty),
            mask=inside,
        )
    mean = total * tl.load(weights + m)
    tl.store(means + m * F + column + c, mean.to(means.dtype.element_ty), mask=inside)


@triton.jit
def gather_backward_kernel(
    of_features,
    of_means,
    weights,
    order,
    starts,
    out,
    P,
    S,
    D,
    F,
    column,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # one program per (row of the layer, BLOCK): the places that hold this patch lie at order[start:end]
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < D
    place = row % S - (S - P)  # below 0: a class token
    patch = (row // S) * P + tl.where(place < 0, 0, place)
    end = tl.load(starts + patch + 1)
    j = tl.where(place < 0, end, tl.load(starts + patch))
    total = tl.zeros((BLOCK,), tl.float32)
    while j < end:
        slot = tl.load(order + j)
        total += tl.load(of_features + slot * F + column + c, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(of_means + (slot // W) * F + column + c, mask=inside, other=0.0).to(
            tl.float32
        )
        total += mean * tl.load(weights + slot // W)
        j += 1
    tl.store(out + row * D + c, total.to(out.dtype.element_ty), mask=inside)
