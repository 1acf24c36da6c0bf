"""Features of several ViT layers gathered into windows of patches, and the attention that pools a window.

Shapes: N crops, P patches per crop, S = P + class tokens, D ViT width, L layers, F = L * D, K kinds of padding,
M windows of W patches, H heads of width d.
"""

from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.pool_patches import cuda, reference

dispatch.register("gather_patches", "torch", reference.gather_patches)
dispatch.register("pool_patches", "torch", reference.pool_patches)
dispatch.register("pool_patches", "cuda", cuda.pool_patches, cuda.usable)
if dispatch.HAS_TRITON:
    from molmo_ds.ops.pool_patches import gather_triton, triton

    dispatch.register(
        "gather_patches", "triton", gather_triton.gather_patches, gather_triton.usable
    )
    dispatch.register("pool_patches", "triton", triton.pool_patches, triton.usable)


def gather_patches(
    layers: list[Tensor], shares: Tensor, pad_embed: Tensor, windows: Tensor, masked: bool = False
) -> tuple[Tensor, Tensor]:
    """Features [M, W, F] of every window's patches and their means [M, F].

    layers: L tensors [N, S, D], joined along D in this order, leading class tokens left out. shares [N, P, K] and
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
