"""AdamW's update on the CPU in one pass (`adamw.cpp`): each number is read and written once, without temporaries.

torch's fused AdamW rounds by where a tensor is cut, so that a run resumed on other ranks would be another; this does
not.
"""

import math
from typing import Any

from torch import Tensor

from molmo_ds.ops.cpu_library import FLOAT, INTEGER, POINTER, Kernel, takes

_run = Kernel("adamw", *[POINTER] * 4, INTEGER, *[FLOAT] * 8)


def usable(weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, *others: Any) -> bool:
    """Whether the kernel takes these."""
    tensors = (weight, grad, mean, square)
    return takes(*tensors) and all(x.is_contiguous() and x.shape == weight.shape for x in tensors)


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
    pointers = (x.data_ptr() for x in (weight, grad, mean, square))
    size = lr / (1 - betas[0] ** step)
    root = math.sqrt(1 - betas[1] ** step)
    rates = (1 - betas[0], betas[1], 1 - betas[1])
    _run(*pointers, weight.numel(), divisor, 1 - lr * decay, *rates, size, root, eps)
