"""Attention over packed message trees in plain PyTorch: one mask, document by document where there are several.

Shapes: B sequences, H heads, G key-value heads, T tokens, d head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class AttentionPlan:
    """Values shared by the layers of a forward pass: ids, and the mask or what a faster implementation made of them."""

    document_ids: Tensor  # int [B, T], 0 = padding, which sees only itself
    branch_ids: Tensor  # int [B, T]
    image_ids: Tensor | None = None  # int [B, T], equal where images see each other, 0 = text
    mask: Tensor | None = None  # [B, 1, T, T], 0 or -inf, added to the scores
    # with a mask on the CPU: of the documents, one after the other in B * T
    lengths: tuple[int, ...] | None = None
    prepared: Any = None  # instead of a mask or with it; its type says which implementation made it


def attention_plan(
    document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None = None
) -> AttentionPlan:
    """A mask for document_ids and branch_ids, int [B, T], for queries of `dtype`."""
    mask = additive(visible(document_ids, branch_ids, image_ids), dtype)
    return AttentionPlan(document_ids, branch_ids, image_ids, mask, lengths_of(document_ids))


def tree_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float = 0.0
) -> Tensor:
    """q [B, H, T, d], k and v [B, G, T, d] with H a multiple of G -> [B, H, T, d]; without a plan all see all."""
    return by(F.scaled_dot_product_attention, q, k, v, plan, dropout_p)


def by(
    sdpa: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan | None,
    dropout_p: float,
) -> Tensor:
    """The same by another function of the first five arguments of torch's scaled_dot_product_attention."""
    if plan is not None and plan.mask is None:  # made for another implementation
        plan = attention_plan(plan.document_ids, plan.branch_ids, q.dtype, plan.image_ids)
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k = k.repeat_interleave(group, 1)
        v = v.repeat_interleave(group, 1)
    # lengths would be compiled in
    if plan is None or torch.compiler.is_compiling() or plan.lengths is None:
        return sdpa(q, k, v, None if plan is None else plan.mask, dropout_p)
    return _each_document(sdpa, q, k, v, plan.mask, plan.lengths, dropout_p)


def visible(document_ids: Tensor, branch_ids: Tensor, image_ids: Tensor | None = None) -> Tensor:
    """bool [B, T, T] (query, key): the rule itself."""
    b = torch.arange(len(document_ids), device=document_ids.device)[:, None, None]
    index = torch.arange(document_ids.shape[1], device=document_ids.device)
    return rule(document_ids, branch_ids, image_ids)(b, None, index[:, None], index)


def rule(
    document_ids: Tensor, branch_ids: Tensor, image_ids: Tensor | None
) -> Callable[..., Tensor]:
    """Whether a query sees a key, as a function of (sequence, head, query, key).

    FlexAttention calls it with scalars, `visible` with indices that broadcast.
    """

    def seen(b: Tensor, h: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
        same = (document_ids[b, query] == document_ids[b, key]) & (document_ids[b, key] != 0)
        branch = (branch_ids[b, key] == 0) | (branch_ids[b, query] == branch_ids[b, key])
        before = query >= key
        if image_ids is not None:
            before = before | (
                (image_ids[b, query] == image_ids[b, key]) & (image_ids[b, key] != 0)
            )
        return (same & branch & before) | (query == key)

    return seen


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask [B, 1, T, T], 0 or -inf, of what is seen, bool [B, T, T]."""
    hidden = ~seen[:, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=seen.device).masked_fill_(
        hidden, -torch.inf
    )


def lengths_of(document_ids: Tensor) -> tuple[int, ...] | None:
    """The lengths of the documents int [B, T], one after the other; None for one alone, and where no CPU asks."""
    if document_ids.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    key = document_ids + (torch.arange(len(document_ids)) * (int(document_ids.max()) + 1))[:, None]
    lengths = torch.unique_consecutive(key, return_counts=True)[1].tolist()
    return tuple(lengths) if len(lengths) > 1 else None


def _each_document(
    sdpa: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    lengths: tuple[int, ...],
    dropout_p: float,
) -> Tensor:
    batch, heads, tokens, width = q.shape
    rows = [
        x.transpose(0, 1).reshape(1, heads, batch * tokens, width).split(lengths, 2)
        for x in (q, k, v)
    ]
    out = []
    at = 0
    for one_q, one_k, one_v, length in zip(*rows, lengths):
        b, start = divmod(at, tokens)
        part = mask[b : b + 1, :, start : start + length, start : start + length]
        out.append(sdpa(one_q, one_k, one_v, part, dropout_p))
        at += length
    return torch.cat(out, 2).view(heads, batch, tokens, width).transpose(0, 1)
