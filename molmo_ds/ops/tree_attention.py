"""Attention over packed message trees.

A query sees a key of the same document, not behind itself, that lies in the shared prefix (branch 0) or in its own
branch. Shapes: B sequences, H heads, G key-value heads, T tokens, d head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops import dispatch


@dataclass(frozen=True)
class AttentionPlan:
    """What the layers of one forward pass share."""

    mask: Tensor  # [B, 1, T, T], 0 or -inf, added to the scores


def attention_plan(document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype) -> AttentionPlan:
    """The plan for document_ids and branch_ids, int [B, T]; document 0 is padding and sees only itself."""
    seen = visible(document_ids, branch_ids)[:, None]
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return AttentionPlan(mask.masked_fill_(~seen, float("-inf")))


def tree_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float = 0.0) -> Tensor:
    """q [B, H, T, d], k and v [B, G, T, d] with H a multiple of G -> [B, H, T, d]; without a plan all see all."""
    return dispatch.call("tree_attention", q, k, v, plan, dropout_p)


def visible(document_ids: Tensor, branch_ids: Tensor) -> Tensor:
    """bool [B, T, T] (query, key): the rule itself."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device)
    same = (document_ids[:, :, None] == document_ids[:, None]) & (document_ids[:, None] != 0)
    branch = (branch_ids[:, None] == 0) | (branch_ids[:, :, None] == branch_ids[:, None])
    return (same & branch & (index[:, None] >= index)) | (index[:, None] == index)


@dispatch.implements("tree_attention", "torch")
def _torch(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float) -> Tensor:
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return F.scaled_dot_product_attention(q, k, v, plan.mask if plan else None, dropout_p)
