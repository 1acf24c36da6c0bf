"""Rotary position embedding, half-split, rotated in float32."""

from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.rope import cpu, reference
from molmo_ds.ops.rope.reference import rope_table

__all__ = ["rope_table", "rotate"]

dispatch.register("rope", "torch", reference.rotate)
dispatch.register("rope", "cpu", cpu.rotate, cpu.usable)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, T, d] rotated by the tables of `rope_table` (d = their last size) in float32, in x's type."""
    return dispatch.call("rope", x, cos, sin)
