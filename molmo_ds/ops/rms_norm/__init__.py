"""Root-mean-square normalisation over the last dimension."""

from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.rms_norm import cpu, reference

dispatch.register("rms_norm", "torch", reference.rms_norm)
dispatch.register("rms_norm", "cpu", cpu.rms_norm, cpu.usable)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] / sqrt(mean(x^2) + eps) in float32 (or wider), cast back to x's type, then times weight [D]."""
    return dispatch.call("rms_norm", x, weight, eps)
