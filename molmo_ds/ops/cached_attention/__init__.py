"""A KV cache: what a prefill writes into it, and the attention of one new token per row, which is written first.

No parameters and no gradients. Shapes: R running rows, S slots, C tokens of a slot, L tokens of the longest row,
H heads, G key-value heads, d head width.
"""

from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.cached_attention import cpu, flash, reference
from molmo_ds.ops.cached_attention.reference import StepPlan, step_plan

__all__ = ["StepPlan", "cached_attention", "step_plan", "write_cache"]

dispatch.register("cached_attention", "torch", reference.cached_attention)
dispatch.register("cached_attention", "cuda", flash.cached_attention, flash.usable)
dispatch.register("cached_attention", "cpu", cpu.cached_attention, cpu.usable)
dispatch.register("write_cache", "torch", reference.write_cache)
dispatch.register("write_cache", "cpu", cpu.write_cache, cpu.writes)


def write_cache(keys: Tensor, new: Tensor, source: Tensor, slot: Tensor, place: Tensor) -> None:
    """Token source[n] of new [B, G, T, d], counted through all rows, becomes keys[slot[n], :, place[n]], in place.

    The same for values. All three index tensors are int64 [N].
    """
    dispatch.call("write_cache", keys, new, source, slot, place)


def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, plan: StepPlan
) -> Tensor:
    """q [R, H, 1, d], k and v [R, G, 1, d] -> [R, H, 1, d]; row r sees places 0 to plan.positions[r] of slot r.

    k and v are written into keys and values [S, G, C, d], in place. A masked NaN spoils the sum of its own row, so a
    cache begins as zeros.
    """
    return dispatch.call("cached_attention", q, k, v, keys, values, plan)
