"""The gated activation of the decoder's and the connector's MLP."""

from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops import dispatch


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both [..., I]."""
    return dispatch.call("swiglu", gate, up)


@dispatch.implements("swiglu", "torch")
def _torch(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up
