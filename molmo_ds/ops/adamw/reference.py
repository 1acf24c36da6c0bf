"""AdamW's update of one tensor in plain PyTorch, in the order of torch.optim.AdamW."""

import math

from torch import Tensor


def adamw(
    weight: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    divisor: float,
) -> None:
    """Update weight, mean and square in place, all of one shape, by grad / divisor at a step (from 1)."""
    slope = grad / divisor if divisor != 1 else grad
    weight.mul_(1 - lr * decay)
    mean.lerp_(slope, 1 - betas[0])
    square.mul_(betas[1]).addcmul_(slope, slope, value=1 - betas[1])
    del slope  # one temporary at a time
    root = square.sqrt().div_(math.sqrt(1 - betas[1] ** step)).add_(eps)
    weight.addcdiv_(mean, root, value=-lr / (1 - betas[0] ** step))
