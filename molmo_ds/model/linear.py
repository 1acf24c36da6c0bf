"""The linear layer of every part of the network: nn.Linear whose product goes through the kernels' seam."""

from torch import Tensor, nn

from molmo_ds.ops.linear import linear


class Linear(nn.Linear):
    """nn.Linear; what looks for linear layers (AutoTP, LoRA) finds it."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return linear(x, self.weight, self.bias)
