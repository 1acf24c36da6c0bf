"""Features of several ViT layers gathered into windows of patches, and the attention that pools a window.

Shapes: N crops, P patches per crop, S = P + class tokens, D ViT width, L layers, F = L * D, K kinds of padding,
M windows of W patches, H heads of width d.
"""

import torch
from torch import Tensor

from molmo_ds.ops import cuda_library, dispatch


def gather_patches(
    layers: list[Tensor], shares: Tensor, pad_embed: Tensor, windows: Tensor, masked: bool = False
) -> tuple[Tensor, Tensor]:
    """Features [M, W, F] of every window's patches and their means [M, F].

    layers: L tensors [N, S, D], joined along D in this order, class tokens (in front) left out. shares [N, P, K] and
    pad_embed [K, F]: shares @ pad_embed is added to a patch (K may be 0). windows int64 [M, W] indexes the N * P
    patches, -1 is a missing patch: a zero vector. The mean is over W, as in the reference; with `masked` over the
    patches that are there.
    """
    return dispatch.call("gather_patches", layers, shares, pad_embed, windows, masked)


def pool_patches(q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool = False) -> Tensor:
    """Attention [M, H, d] of one query per window, q [M, H, d], over its patches, k and v [M, W, H, d].

    windows [M, W] as in `gather_patches`. Without `masked` a missing patch takes part with the k and v given, as in the
    reference (there they are the projections' biases); with `masked` it does not, and a window without patches gives 0.
    """
    return dispatch.call("pool_patches", q, k, v, windows, masked)


@dispatch.implements("gather_patches", "torch")
def _gather_torch(
    layers: list[Tensor], shares: Tensor, pad_embed: Tensor, windows: Tensor, masked: bool
) -> tuple[Tensor, Tensor]:
    patches = shares.shape[1]
    flat = torch.cat([x[:, x.shape[1] - patches :] for x in layers], -1)
    if pad_embed.shape[0]:
        flat = flat + (shares.to(flat.dtype) @ pad_embed.to(flat.dtype))
    there = windows >= 0
    features = flat.flatten(0, 1).index_select(0, windows.clamp(min=0).flatten()).view(*windows.shape, -1)
    features = torch.where(there[..., None], features, 0)
    count = there.sum(1, keepdim=True).clamp(min=1) if masked else windows.shape[1]
    return features, (features.sum(1) / count).to(features.dtype)


@dispatch.implements("pool_patches", "torch")
def _pool_torch(q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    score = (q[:, None].to(wide) * k.to(wide)).sum(-1) * q.shape[-1] ** -0.5  # [M, W, H]
    if masked:
        there = (windows >= 0)[..., None]
        score = score.masked_fill(~there, torch.finfo(wide).min)
    share = score.softmax(1)
    if masked:
        share = torch.where(there, share, 0)
    return (share[..., None] * v.to(wide)).sum(1).to(q.dtype)


@torch.library.custom_op("molmo_ds::gather_patches", mutates_args=())
def _gather(
    layers: list[Tensor], shares: Tensor, pad_embed: Tensor, windows: Tensor, masked: bool
) -> tuple[Tensor, Tensor]:
    from molmo_ds.ops import triton_kernels

    features, means = _gather_shape(layers, shares, pad_embed, windows, masked)
    rows, patches, width = layers[0].shape[1], shares.shape[1], layers[0].shape[2]
    weights, block = _mean_weights(windows, masked), min(1024, 1 << (width - 1).bit_length())
    shares, pad_embed, windows = shares.float().contiguous(), pad_embed.contiguous(), windows.contiguous()
    for i, layer in enumerate(layers):
        triton_kernels.gather_patches[(len(windows), -(-width // block))](
            layer.contiguous(), shares, pad_embed, windows, weights, features, means,
            patches, rows, width, means.shape[1], i * width, windows.shape[1], pad_embed.shape[0], block,
        )  # fmt: skip
    return features, means


@_gather.register_fake
def _gather_shape(
    layers: list[Tensor], shares: Tensor, pad_embed: Tensor, windows: Tensor, masked: bool
) -> tuple[Tensor, Tensor]:
    width = sum(x.shape[2] for x in layers)
    return layers[0].new_empty(*windows.shape, width), layers[0].new_empty(windows.shape[0], width)


@torch.library.custom_op("molmo_ds::gather_patches_backward", mutates_args=())
def _gather_backward(
    of_features: Tensor, of_means: Tensor, windows: Tensor, masked: bool, count: int, sizes: list[int]
) -> list[Tensor]:
    from molmo_ds.ops import triton_kernels

    crops, rows, width, patches = sizes
    order = windows.flatten().sort(stable=True)
    starts = torch.searchsorted(order[0], torch.arange(crops * patches + 1, device=windows.device))
    weights, block = _mean_weights(windows, masked), min(1024, 1 << (width - 1).bit_length())
    out = _gather_backward_shape(of_features, of_means, windows, masked, count, sizes)
    of_features, of_means = of_features.contiguous(), of_means.contiguous()
    for i in range(count):
        triton_kernels.gather_patches_backward[(crops * rows, -(-width // block))](
            of_features, of_means, weights, order[1], starts, out[i],
            patches, rows, width, count * width, i * width, windows.shape[1], block,
        )  # fmt: skip
    return out


@_gather_backward.register_fake
def _gather_backward_shape(
    of_features: Tensor, of_means: Tensor, windows: Tensor, masked: bool, count: int, sizes: list[int]
) -> list[Tensor]:
    return [of_features.new_empty(sizes[:3]) for _ in range(count)]


def _gather_save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN001
    layers, shares, pad_embed, windows, masked = inputs
    ctx.save_for_backward(shares, windows)
    ctx.masked, ctx.count, ctx.dtype = masked, len(layers), pad_embed.dtype
    ctx.sizes = [*layers[0].shape, shares.shape[1]]


def _gather_gradients(ctx, of_features: Tensor, of_means: Tensor) -> tuple:  # noqa: ANN001
    shares, windows = ctx.saved_tensors
    layers = _gather_backward(of_features, of_means, windows, ctx.masked, ctx.count, ctx.sizes)
    pad_embed = None
    if ctx.needs_input_grad[2]:
        flat = shares.flatten(0, 1).T.to(layers[0].dtype)
        parts = [flat @ x[:, x.shape[1] - shares.shape[1] :].flatten(0, 1) for x in layers]
        pad_embed = torch.cat(parts, -1).to(ctx.dtype)
    return layers, None, pad_embed, None, None


_gather.register_autograd(_gather_gradients, setup_context=_gather_save)


@dispatch.implements("gather_patches", "triton", lambda layers, *rest: dispatch.on_gpu(*layers, *rest[:2]))
def _gather_triton(
    layers: list[Tensor], shares: Tensor, pad_embed: Tensor, windows: Tensor, masked: bool
) -> tuple[Tensor, Tensor]:
    return _gather(list(layers), shares, pad_embed, windows, masked)


def _mean_weights(windows: Tensor, masked: bool) -> Tensor:
    # float32 [M]: 1 / number of patches of the mean
    if not masked:
        return torch.full(windows.shape[:1], 1 / windows.shape[1], device=windows.device)
    return 1 / (windows >= 0).sum(1).clamp(min=1).float()


@torch.library.custom_op("molmo_ds::pool_patches", mutates_args=())
def _pool(q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool, cuda: bool) -> Tensor:
    q, k, v, windows = q.contiguous(), k.contiguous(), v.contiguous(), windows.contiguous()
    if cuda:
        return cuda_library.pool_patches(q, k, v, windows if masked else None)
    from molmo_ds.ops import triton_kernels

    out = torch.empty_like(q)
    grid, constants = _pool_launch(k, masked)
    triton_kernels.pool_patches[grid](q, k, v, windows, out, q.shape[2] ** -0.5, *constants)
    return out


@torch.library.custom_op("molmo_ds::pool_patches_backward", mutates_args=())
def _pool_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool, cuda: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad, q, k, v, windows = grad.contiguous(), q.contiguous(), k.contiguous(), v.contiguous(), windows.contiguous()
    if cuda:
        return cuda_library.pool_patches_backward(grad, q, k, v, windows if masked else None)
    from molmo_ds.ops import triton_kernels

    out = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    grid, constants = _pool_launch(k, masked)
    triton_kernels.pool_patches_backward[grid](grad, q, k, v, windows, *out, q.shape[2] ** -0.5, *constants)
    return out


def _pool_launch(k: Tensor, masked: bool) -> tuple[tuple[int, int], tuple]:
    windows, size, heads, width = k.shape
    padded, block = 1 << (size - 1).bit_length(), 1 << (width - 1).bit_length()
    # keys and values of a program stay in registers: at most 4096 numbers each
    together = max(1, min(1 << (heads - 1).bit_length(), 4096 // (padded * block)))
    return (windows, -(-heads // together)), (width, heads, size, masked, padded, together, block)


@_pool.register_fake
def _pool_shape(q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool, cuda: bool) -> Tensor:
    return q.new_empty(q.shape)


@_pool_backward.register_fake
def _pool_backward_shape(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool, cuda: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _pool_save(ctx, inputs: tuple, output: Tensor) -> None:  # noqa: ANN001
    ctx.save_for_backward(*inputs[:4])
    ctx.flags = inputs[4:]


def _pool_gradients(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN001
    return *_pool_backward(grad, *ctx.saved_tensors, *ctx.flags), None, None, None


_pool.register_autograd(_pool_gradients, setup_context=_pool_save)


@dispatch.implements("pool_patches", "triton", lambda q, k, v, *rest: dispatch.on_gpu(q, k, v))
def _pool_triton(q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool) -> Tensor:
    return _pool(q, k, v, windows, masked, False)


@dispatch.implements("pool_patches", "cuda", lambda q, k, *rest: q.is_cuda and cuda_library.knows(q, k))
def _pool_cuda(q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool) -> Tensor:
    if not (q.is_cuda and cuda_library.knows(q, k)):  # asked for by name, but not built or not made for this shape
        return (_pool_triton if dispatch.on_gpu(q, k, v) else _pool_torch)(q, k, v, windows, masked)
    return _pool(q, k, v, windows, masked, True)
