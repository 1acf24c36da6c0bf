"""x times a weight matrix, by whichever library has the faster product on this CPU."""

from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.linear import cpu, reference
from molmo_ds.ops.linear.cpu import add_product, product

__all__ = ["add_product", "linear", "product"]

dispatch.register("linear", "torch", reference.linear)
dispatch.register("linear", "cpu", cpu.linear, cpu.usable)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K], weight [N, K], bias [N] -> x @ weight.T + bias, [..., N]."""
    return dispatch.call("linear", x, weight, bias)
