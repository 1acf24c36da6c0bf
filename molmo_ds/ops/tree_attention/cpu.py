"""Tree attention on the CPU: blocks of the mask (`mask_blocks.py`) where documents are long enough for them to pay."""

from dataclasses import replace

import torch
from torch import Tensor

from molmo_ds.ops.tree_attention import mask_blocks, reference
from molmo_ds.ops.tree_attention.reference import AttentionPlan


def plan_usable(
    document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None
) -> bool:
    """Whether a plan may have blocks: on a CPU, of sequences longer than a block."""
    on_cpu = document_ids.device.type == "cpu" and not torch.compiler.is_compiling()
    return on_cpu and dtype in mask_blocks.TYPES and document_ids.shape[1] > mask_blocks.BLOCK


def plan(
    document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None
) -> AttentionPlan:
    """The mask for ids int [B, T], and its blocks where they pay; of long sequences blocks without a mask."""
    if document_ids.shape[1] >= mask_blocks.LONG:
        blocks = mask_blocks.of_ids(document_ids, branch_ids, image_ids, dtype)
        return AttentionPlan(document_ids, branch_ids, image_ids, prepared=blocks)
    made = reference.attention_plan(document_ids, branch_ids, dtype, image_ids)
    # documents shorter than the blocks run one by one in less time
    short = made.lengths is not None and document_ids.numel() <= mask_blocks.BLOCK * len(
        made.lengths
    )
    return made if short else replace(made, prepared=mask_blocks.cut(made.mask))


def usable(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float) -> bool:
    """Whether the plan has blocks of q's type. An op without parameters may choose by sizes (`ops/dispatch.py`)."""
    if plan is None or torch.compiler.is_compiling():  # blocks would be compiled in
        return False
    return mask_blocks.usable(q, plan.prepared, dropout_p)


def tree_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float
) -> Tensor:
    """q [B, H, T, d], k and v [B, G, T, d] -> [B, H, T, d]; plain where the plan has no blocks."""
    if not usable(q, k, v, plan, dropout_p):  # the plan decides, also where a name is forced
        return reference.tree_attention(q, k, v, plan, dropout_p)
    return mask_blocks.attention(q, k, v, plan.prepared)
