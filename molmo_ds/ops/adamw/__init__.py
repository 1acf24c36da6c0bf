"""AdamW's update of one tensor."""

from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.adamw import cpu, reference

dispatch.register("adamw", "torch", reference.adamw)
dispatch.register("adamw", "cpu", cpu.adamw, cpu.usable)


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
    """Update weight, mean and square in place, all of one shape, by grad / divisor at a step (from 1).

    mean and square are the moments whose rates are `betas`; weight loses lr * decay of itself first.
    """
    dispatch.call("adamw", weight, grad, mean, square, step, lr, betas, eps, decay, divisor)
