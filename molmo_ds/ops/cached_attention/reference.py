"""Attention over a KV cache in plain PyTorch: write, then SDPA with a mask; shapes as in `__init__.py`."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class StepPlan:
    """What all layers of a step share."""

    rows: Tensor  # int64 [R]: 0, 1, ...
    positions: Tensor  # int64 [R]: the place of each row's new token
    lengths: Tensor  # int32 [R]: tokens in the cache before it, the same numbers
    mask: Tensor  # [R, 1, 1, L]: 0 where a row sees a place, -inf elsewhere


def step_plan(positions: Tensor, longest: int, dtype: torch.dtype) -> StepPlan:
    """The plan for positions int64 [R], all below `longest`, and queries of `dtype`; reads nothing back."""
    device = positions.device
    rows = torch.arange(len(positions), device=device)
    hidden = torch.arange(longest, device=device) > positions[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
    return StepPlan(rows, positions, positions.int(), mask[:, None, None])


def write_cache(keys: Tensor, new: Tensor, source: Tensor, slot: Tensor, place: Tensor) -> None:
    """Token source[n] of new [B, G, T, d], counted through all rows, becomes keys[slot[n], :, place[n]], in place."""
    keys[slot, :, place] = new.transpose(1, 2).flatten(0, 1)[source]


def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, plan: StepPlan
) -> Tensor:
    """q [R, H, 1, d], k and v [R, G, 1, d] -> [R, H, 1, d]."""
    rows = q.shape[0]
    longest = plan.mask.shape[-1]
    for kept, new in ((keys, k), (values, v)):
        kept[plan.rows, :, plan.positions] = new[:, :, 0]
    # heads of a group as queries: no copy of the cache
    grouped = q.reshape(rows, k.shape[1], -1, q.shape[-1])
    seen = (kept[:rows, :, :longest] for kept in (keys, values))
    return F.scaled_dot_product_attention(grouped, *seen, plan.mask).reshape(q.shape)
