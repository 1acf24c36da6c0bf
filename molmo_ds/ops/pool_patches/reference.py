"""Patches of several ViT layers gathered into windows, and the attention that pools a window, in plain PyTorch.

Shapes: N crops, P patches per crop, S = P + class tokens, D ViT width, L layers, F = L * D, K kinds of padding,
M windows of W patches, H heads of width d.
"""

import torch
from torch import Tensor


def gather_patches(
    layers: list[Tensor], shares: Tensor, pad_embed: Tensor, windows: Tensor, masked: bool = False
) -> tuple[Tensor, Tensor]:
    """Features [M, W, F] of every window's patches and their means [M, F].

    layers: L tensors [N, S, D]; shares [N, P, K]; pad_embed [K, F]; windows int64 [M, W], -1 = missing: a zero vector.
    """
    patches = shares.shape[1]
    flat = torch.cat([x[:, x.shape[1] - patches :] for x in layers], -1)
    if pad_embed.shape[0]:
        flat = flat + (shares.to(flat.dtype) @ pad_embed.to(flat.dtype))
    there = windows >= 0
    index = windows.clamp(min=0).flatten()
    features = flat.flatten(0, 1).index_select(0, index).view(*windows.shape, -1)
    features = torch.where(there[..., None], features, 0)
    count = there.sum(1, keepdim=True).clamp(min=1) if masked else windows.shape[1]
    return features, (features.sum(1) / count).to(features.dtype)


def pool_patches(q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool = False) -> Tensor:
    """Attention [M, H, d] of one query per window, q [M, H, d], over its patches, k and v [M, W, H, d]."""
    wide = torch.promote_types(q.dtype, torch.float32)
    product = (q[:, None].to(wide) * k.to(wide)).sum(-1)
    score = product * q.shape[-1] ** -0.5  # [M, W, H]
    if masked:
        there = (windows >= 0)[..., None]
        score = score.masked_fill(~there, torch.finfo(wide).min)
    share = score.softmax(1)
    if masked:
        share = torch.where(there, share, 0)
    return (share[..., None] * v.to(wide)).sum(1).to(q.dtype)
