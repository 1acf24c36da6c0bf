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
    lengths: tuple[int, ...] | None = None  # of the documents that follow each other in the B * T tokens (CPU only)


def attention_plan(document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype) -> AttentionPlan:
    """The plan for document_ids and branch_ids, int [B, T]; document 0 is padding and sees only itself."""
    seen = visible(document_ids, branch_ids)[:, None]
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return AttentionPlan(mask.masked_fill_(~seen, float("-inf")), _lengths(document_ids))


def tree_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float = 0.0) -> Tensor:
    """q [B, H, T, d], k and v [B, G, T, d] with H a multiple of G -> [B, H, T, d]; without a plan all see all."""
    return dispatch.call("tree_attention", q, k, v, plan, dropout_p)


def visible(document_ids: Tensor, branch_ids: Tensor) -> Tensor:
    """bool [B, T, T] (query, key): the rule itself."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device)
    same = (document_ids[:, :, None] == document_ids[:, None]) & (document_ids[:, None] != 0)
    branch = (branch_ids[:, None] == 0) | (branch_ids[:, :, None] == branch_ids[:, None])
    return (same & branch & (index[:, None] >= index)) | (index[:, None] == index)


def _lengths(document_ids: Tensor) -> tuple[int, ...] | None:
    if document_ids.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    key = document_ids + (torch.arange(len(document_ids)) * (int(document_ids.max()) + 1))[:, None]
    lengths = torch.unique_consecutive(key, return_counts=True)[1].tolist()
    return tuple(lengths) if len(lengths) > 1 else None


@dispatch.implements("tree_attention", "torch")
def _torch(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float) -> Tensor:
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if plan is None or plan.lengths is None:
        return F.scaled_dot_product_attention(q, k, v, plan.mask if plan else None, dropout_p)
    # documents one by one: the mask's zero blocks cost nothing
    batch, heads, tokens, width = q.shape
    rows = [x.transpose(0, 1).reshape(1, heads, batch * tokens, width).split(plan.lengths, 2) for x in (q, k, v)]
    out, at = [], 0
    for one_q, one_k, one_v, length in zip(*rows, plan.lengths):
        b, start = divmod(at, tokens)
        mask = plan.mask[b : b + 1, :, start : start + length, start : start + length]
        out.append(F.scaled_dot_product_attention(one_q, one_k, one_v, mask, dropout_p))
        at += length
    return torch.cat(out, 2).view(heads, batch, tokens, width).transpose(0, 1)
