"""Cross-entropy with a weight per token and the z-loss in plain PyTorch, all logits at once.

Shapes: R rows, D width, V words.
"""

import torch
from torch import Tensor


def weighted_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, loss_weights: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Three sums over the rows: w * ce, w * z_loss * logsumexp^2, and w where the likeliest word is the label.

    hidden [R, D] times the head weight [V, D] gives the logits; labels [R]; loss_weights float [R]. A row of weight 0
    is not learnt, whatever its label.
    """
    logits = hidden @ weight.T
    labels = torch.where(loss_weights != 0, labels, 0)
    lse = logits.logsumexp(-1)
    ce = lse - logits.gather(-1, labels[:, None])[:, 0]
    right = (logits.argmax(-1) == labels).to(loss_weights.dtype)
    return (
        (loss_weights * ce).sum(),
        (loss_weights * z_loss * lse**2).sum(),
        (loss_weights * right).sum(),
    )
