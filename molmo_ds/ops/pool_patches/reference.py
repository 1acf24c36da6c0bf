"""Patches of several ViT layers gathered into windows, and the attention that pools a window, in plain PyTorch.

Shapes: N crops, P patches per crop, S = P + class tokens, D ViT width, L layers, F = L * D, K kinds of padding,
M windows of W patches, H heads of width d.
"""

import torch
from torch import Tensor


def gather_patches(
    layers: list[Tensor],
    shares: Tensor,
    pad_embed: Tensor,
    windows: Tensor,
    masked: bool = False,
) -> tuple[Tensor, Tensor]:
    """Features [M, W, F] of every window's patches and their means [M, F].

    layers: L tensors [N, S, D]; shares [N, P, K]; pad_embed [K, F]; windows int64 [M, W], -1 = missing: a zero vector.
    """
    patches = shares.shape[1]
    first = layers[0].shape[1] - patches  # after the class token
    of_patches = [x[:, first:] for x in layers]
    flat = torch.cat(of_patches, -1)
    if pad_embed.shape[0]:
        kind = flat.dtype
        padding = shares.to(kind) @ pad_embed.to(kind)
        flat = flat + padding
    rows = flat.flatten(0, 1)
    index = windows.clamp(min=0).flatten()
    features = rows.index_select(0, index)
    features = features.view(*windows.shape, -1)
    there = windows >= 0
    features = torch.where(there[..., None], features, 0)
    count = windows.shape[1]
    if masked:
        count = there.sum(1, keepdim=True).clamp(min=1)
    mean = features.sum(1) / count
    return features, mean.to(features.dtype)


def pool_patches(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Tensor,
    masked: bool = False,
) -> Tensor:
    """Attention [M, H, d] of one query per window, q [M, H, d], over its patches, k and v [M, W, H, d]."""
    wide = torch.promote_types(q.dtype, torch.float32)
    query = q[:, None].to(wide)
    product = query * k.to(wide)
    scale = q.shape[-1] ** -0.5
    score = product.sum(-1) * scale  # [M, W, H]
    if masked:
        there = (windows >= 0)[..., None]
        least = torch.finfo(wide).min
        score = score.masked_fill(~there, least)
    share = score.softmax(1)
    if masked:
        share = torch.where(there, share, 0)
    weighted = share[..., None] * v.to(wide)
    pooled = weighted.sum(1)
    return pooled.to(q.dtype)
