"""A KV cache on the CPU: a prefill's tokens are copied in one pass, and each row reads its own only (`step.cpp`)."""

from torch import Tensor

from molmo_ds.ops.cached_attention.reference import StepPlan
from molmo_ds.ops.cpu_library import INTEGER, POINTER, Kernel, takes

_run = Kernel("attention_step", *[POINTER] * 7, *[INTEGER] * 5)
_write = Kernel("write_cache", *[POINTER] * 5, *[INTEGER] * 8)


def usable(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: StepPlan,
) -> bool:
    """Whether the kernel takes these."""
    whole = keys.is_contiguous() and values.is_contiguous()
    return whole and takes(q, k, v, keys, values)


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: StepPlan,
) -> Tensor:
    """q [R, H, 1, d], k and v [R, G, 1, d] -> [R, H, 1, d]."""
    rows, heads, _, width = q.shape
    slots, groups, capacity, _ = keys.shape
    longest = plan.mask.shape[-1]
    if longest > capacity or rows > slots:
        raise IndexError("there is no place for the new token in its slot, or no slot for its row")
    q = q.contiguous()
    k = k.contiguous()
    v = v.contiguous()
    out = q.new_empty(q.shape)
    _run(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        plan.positions.data_ptr(),
        out.data_ptr(),
        rows,
        heads,
        groups,
        capacity,
        width,
    )
    return out


def writes(keys: Tensor, new: Tensor, source: Tensor, slot: Tensor, place: Tensor) -> bool:
    """Whether the kernel takes these."""
    straight = keys.is_contiguous() and new.stride(-1) == 1
    return straight and takes(keys, new)


def write_cache(keys: Tensor, new: Tensor, source: Tensor, slot: Tensor, place: Tensor) -> None:
    """Token source[n] of new [B, G, T, d], counted through all rows, becomes keys[slot[n], :, place[n]], in place."""
    slots, groups, capacity, width = keys.shape
    batch, _, tokens, _ = new.shape
    source = _below(batch * tokens, source)
    slot = _below(slots, slot)
    place = _below(capacity, place)
    _write(
        keys.data_ptr(),
        new.data_ptr(),
        source.data_ptr(),
        slot.data_ptr(),
        place.data_ptr(),
        len(source),
        groups,
        capacity,
        width,
        tokens,
        *new.stride()[:3],
    )


def _below(bound: int, index: Tensor) -> Tensor:
    # as the kernel reads it, which checks nothing
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < bound:
        raise IndexError("a token, a slot or a place in it is not there")
    return index.contiguous()
