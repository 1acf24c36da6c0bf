"""The gated activation of the decoder's and the connector's MLP."""

from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.swiglu import cpu, reference

dispatch.register("swiglu", "torch", reference.swiglu)
dispatch.register("swiglu", "cpu", cpu.swiglu, cpu.usable)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both [..., I]."""
    return dispatch.call("swiglu", gate, up)
