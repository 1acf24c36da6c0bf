"""x times a weight matrix in plain PyTorch."""

from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K], weight [N, K], bias [N] -> x @ weight.T + bias, [..., N]."""
    return F.linear(x, weight, bias)
