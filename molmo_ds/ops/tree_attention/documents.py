"""Attention of many short documents on a CPU where nothing learns: one call for all, each a padded row of its own.

A packed prefill holds dozens of prompts. One mask over all of them takes the square of their tokens, and a call for
each takes longer than its arithmetic.

Shapes: B sequences, H heads, G key-value heads, T tokens, d head width, D documents, L tokens of the longest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops.tree_attention.reference import additive, visible

WORTH = 1.5  # D * L / (B * T): with more padding than that, documents have calls of their own


@dataclass(frozen=True)
class Documents:
    """Where the documents of a plan lie."""

    index: Tensor  # int64 [D, L], of the flattened [B * T]; 0 where a document has no more tokens
    back: Tensor  # int64 [B * T], where in the flattened [D * L] each token lies
    mask: Tensor  # [D, 1, L, L], 0 or -inf; padding sees itself


def of_ids(
    document_ids: Tensor,
    branch_ids: Tensor,
    image_ids: Tensor | None,
    lengths: tuple[int, ...],
    dtype: torch.dtype,
) -> Documents | None:
    """The documents of ids int [B, T], whose `lengths` follow each other; None where padding would cost too much."""
    longest = max(lengths)
    if longest * len(lengths) > WORTH * document_ids.numel():
        return None
    counts = torch.tensor(lengths)[:, None]
    place = torch.arange(longest)
    there = place < counts
    index = torch.where(there, counts.cumsum(0) - counts + place, 0)
    ids = [
        None if one is None else torch.where(there, one.flatten()[index], 0)
        for one in (document_ids, branch_ids, image_ids)
    ]
    back = there.flatten().nonzero()[:, 0]
    return Documents(index, back, additive(visible(*ids), dtype))


def attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """q [B, H, T, d], k and v [B, G, T, d] -> [B, H, T, d]."""
    rows, heads, tokens, width = q.shape
    group = heads // k.shape[1]
    shape = documents.index.shape
    padded = documents.index.flatten()
    q, k, v = (
        x.transpose(1, 2).reshape(rows * tokens, -1).index_select(0, padded).view(*shape, -1, width)
        for x in (q, k, v)
    )
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if group > 1:
        k = k.repeat_interleave(group, 1)
        v = v.repeat_interleave(group, 1)
    out = F.scaled_dot_product_attention(q, k, v, documents.mask)
    out = out.transpose(1, 2).reshape(len(padded), -1).index_select(0, documents.back)
    return out.view(rows, tokens, heads, width).transpose(1, 2)
