"""Tree attention on the CPU: blocks of the mask (`mask_blocks.py`) where documents are long enough for them to pay."""

import torch
from torch import Tensor

from molmo_ds.ops.tree_attention import mask_blocks
from molmo_ds.ops.tree_attention.reference import AttentionPlan


def usable(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float) -> bool:
    """Whether blocks pay; by sizes too, which an op without parameters may (see `ops/dispatch.py`)."""
    if plan is None or plan.mask is None or torch.compiler.is_compiling():  # lengths would be compiled in
        return False
    # documents shorter than the blocks run one by one in less time
    short = plan.lengths is not None and q.shape[0] * q.shape[2] <= mask_blocks.BLOCK * len(plan.lengths)
    return not short and mask_blocks.usable(q, k, plan.mask, dropout_p)


def tree_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, dropout_p: float) -> Tensor:
    """q [B, H, T, d], k and v [B, G, T, d] -> [B, H, T, d]."""
    return mask_blocks.attention(q, k, v, plan.mask)
