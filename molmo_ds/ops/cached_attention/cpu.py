"""A KV cache on the CPU: a prefill's tokens are copied in one pass, and each row reads its own only (`step.cpp`)."""

from torch import Tensor

from molmo_ds.ops.cached_attention.reference import StepPlan
from molmo_ds.ops.cpu_library import INTEGER, POINTER, Kernel, takes

_run = Kernel("attention_step", *[POINTER] * 7, *[INTEGER] * 5)
_write = Kernel("write_cache", *[POINTER] * 5, *[INTEGER] * 8)


def usable(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, plan: StepPlan) -> bool:
    """Whether the kernel takes these."""
    return takes(q, k, v, keys, values) and keys.is_contiguous() and values.is_contiguous()


def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, plan: StepPlan
) -> Tensor:
    """q [R, H, 1, d], k and v [R, G, 1, d] -> [R, H, 1, d]."""
    rows, heads, _, width = q.shape
    groups, capacity = keys.shape[1:3]
    if plan.mask.shape[-1] > capacity or rows > len(keys):
        raise IndexError("there is no place for the new token in its slot, or no slot for its row")
    out = q.new_empty(q.shape)
    q, k, v = (x.contiguous() for x in (q, k, v))
    pointers = [x.data_ptr() for x in (q, k, v, keys, values, plan.positions, out)]
    _run(*pointers, rows, heads, groups, capacity, width)
    return out


def writes(keys: Tensor, new: Tensor, source: Tensor, slot: Tensor, place: Tensor) -> bool:
    """Whether the kernel takes these."""
    return takes(keys, new) and keys.is_contiguous() and new.stride(-1) == 1


def write_cache(keys: Tensor, new: Tensor, source: Tensor, slot: Tensor, place: Tensor) -> None:
    """Token source[n] of new [B, G, T, d], counted through all rows, becomes keys[slot[n], :, place[n]], in place."""
    slots, groups, capacity, width = keys.shape
    bounds = ((source, new.shape[0] * new.shape[2]), (slot, slots), (place, capacity))
    if any(len(x) and not 0 <= int(x.min()) <= int(x.max()) < bound for x, bound in bounds):
        raise IndexError("a token, a slot or a place in it is not there")
    source, slot, place = (x.contiguous() for x in (source, slot, place))
    pointers = [x.data_ptr() for x in (keys, new, source, slot, place)]
    strides = new.stride()[:3]
    _write(*pointers, len(source), groups, capacity, width, new.shape[2], *strides)
