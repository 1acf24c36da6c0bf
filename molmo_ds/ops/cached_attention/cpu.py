"""Attention over a KV cache on the CPU: each row reads its own tokens only (`step.cpp`)."""

import torch
from torch import Tensor

from molmo_ds.ops.cached_attention.reference import StepPlan
from molmo_ds.ops.cpu_library import INTEGER, POINTER, Kernel, takes

_run = Kernel("attention_step", *[POINTER] * 7, *[INTEGER] * 5)


def usable(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, plan: StepPlan
) -> bool:
    """Whether the kernel takes these."""
    return takes(q, k, v, keys, values) and keys.is_contiguous() and values.is_contiguous()


def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, plan: StepPlan
) -> Tensor:
    """q [R, H, 1, d], k and v [R, G, 1, d] -> [R, H, 1, d]."""
    rows, heads, _, width = q.shape
    groups, capacity = keys.shape[1:3]
    out = torch.empty(q.shape)
    q, k, v = (x.contiguous() for x in (q, k, v))
    pointers = [x.data_ptr() for x in (q, k, v, keys, values, plan.positions, out)]
    _run(*pointers, rows, heads, groups, capacity, width)
    return out
