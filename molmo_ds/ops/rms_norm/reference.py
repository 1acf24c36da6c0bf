"""Root-mean-square normalisation over the last dimension, in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] / sqrt(mean(x^2) + eps) in float32 (or wider), cast back to x's type, then times weight [D]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), x.shape[-1:], None, eps).to(x.dtype) * weight
