"""The gated activation of an MLP in plain PyTorch."""

from torch import Tensor
from torch.nn import functional as F


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both [..., I]."""
    return F.silu(gate) * up
