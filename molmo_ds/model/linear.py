"""The linear layer of every part of the network: nn.Linear whose product goes through the kernels' seam."""

from torch import Tensor, nn
from torch.nn import functional as F

from molmo_ds.ops.linear import linear


class Linear(nn.Linear):
    """nn.Linear, so that AutoTP and peft find it; `adapt` adds a LoRA adapter."""

    lora_scale = lora_dropout = 0.0

    def adapt(self, rank: int, alpha: float, dropout: float) -> None:
        """Add alpha / rank * lora_B(lora_A(dropout(x))) to the output."""
        self.lora_A = Linear(self.in_features, rank, bias=False)
        self.lora_B = Linear(rank, self.out_features, bias=False)
        self.lora_scale = alpha / rank
        self.lora_dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        out = linear(x, self.weight, self.bias)
        if not self.lora_scale:
            return out
        dropped = F.dropout(x, self.lora_dropout, self.training) if self.lora_dropout else x
        return out + self.lora_scale * self.lora_B(self.lora_A(dropped))
