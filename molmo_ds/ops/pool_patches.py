"""Features of several ViT layers gathered into windows of patches, and the attention that pools a window.

Shapes: N crops, P patches per crop, S = P + class tokens, D ViT width, L layers, F = L * D, K kinds of padding,
M windows of W patches, H heads of width d.
"""

import torch
from torch import Tensor

from molmo_ds.ops import dispatch


def gather_patches(
    layers: list[Tensor], shares: Tensor, pad_embed: Tensor, windows: Tensor, masked: bool = False
) -> tuple[Tensor, Tensor]:
    """Features [M, W, F] of every window's patches and their means [M, F].

    layers: L tensors [N, S, D], joined along D in this order, class tokens (in front) left out. shares [N, P, K] and
    pad_embed [K, F]: shares @ pad_embed is added to a patch (K may be 0). windows int64 [M, W] indexes the N * P
    patches, -1 is a missing patch: a zero vector. The mean is over W, as in the reference; with `masked` over the
    patches that are there. Every patch is used at most once (or the gradient is summed in no fixed order on a GPU).
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
