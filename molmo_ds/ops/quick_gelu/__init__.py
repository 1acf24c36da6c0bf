"""The activation of CLIP's MLP."""

from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.quick_gelu import cpu, reference

dispatch.register("quick_gelu", "torch", reference.quick_gelu)
dispatch.register("quick_gelu", "cpu", cpu.quick_gelu, cpu.usable)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) of any shape."""
    return dispatch.call("quick_gelu", x)
