"""Root-mean-square normalisation over the last dimension."""

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops import dispatch


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] / sqrt(mean(x^2) + eps) in float32 (or wider), cast back to x's type, then times weight [D]."""
    return dispatch.call("rms_norm", x, weight, eps)


@dispatch.implements("rms_norm", "torch")
def _torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), x.shape[-1:], None, eps).to(x.dtype) * weight
