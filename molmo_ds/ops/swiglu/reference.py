"""The gated activation of an MLP in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both [..., I]."""
    out = F.silu(gate)
    # a backward pass would need it as it is; memory is new to the process where it is large
    return out * up if torch.is_grad_enabled() else out.mul_(up)
