"""Tree attention on the CPU: by its own kernels over panels of keys (`panels.py`), which take float32.

Where they cannot run, by PyTorch's: blocks of the mask (`mask_blocks.py`) where documents are long enough for them to
pay; many short documents are one call of padded rows where nothing learns (`documents.py`). Elsewhere as the reference,
but bf16 learns by the kernels of `flash_cpu.py`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from molmo_ds.ops import cpu_library
from molmo_ds.ops.tree_attention import (
    documents,
    flash_cpu,
    kernels_cpu,
    mask_blocks,
    panels,
    reference,
)
from molmo_ds.ops.tree_attention.panels import QUERIES, Panels
from molmo_ds.ops.tree_attention.reference import AttentionPlan


def plan_usable(
    document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None
) -> bool:
    """Whether a plan may have panels or blocks: on a CPU, of sequences longer than a block."""
    on_cpu = document_ids.device.type == "cpu" and not torch.compiler.is_compiling()
    return on_cpu and dtype in mask_blocks.TYPES and document_ids.shape[1] > mask_blocks.BLOCK


def plan(
    document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None
) -> AttentionPlan:
    """The panels for ids int [B, T]; else their mask and its blocks where they pay, of long sequences blocks alone."""
    if dtype == torch.float32 and cpu_library.runs():
        seen = panels.of_ids(document_ids, branch_ids, image_ids)
        return AttentionPlan(document_ids, branch_ids, image_ids, prepared=seen)
    if document_ids.shape[1] >= mask_blocks.LONG:
        blocks = mask_blocks.of_ids(document_ids, branch_ids, image_ids, dtype)
        return AttentionPlan(document_ids, branch_ids, image_ids, prepared=blocks)
    lengths = reference.lengths_of(document_ids)
    # documents shorter than the blocks run in less time alone, or all in one call
    short = lengths is not None and document_ids.numel() <= mask_blocks.BLOCK * len(lengths)
    if short and not torch.is_grad_enabled():
        rows = documents.of_ids(document_ids, branch_ids, image_ids, lengths, dtype)
        if rows is not None:
            return AttentionPlan(document_ids, branch_ids, image_ids, prepared=rows)
    made = reference.attention_plan(document_ids, branch_ids, dtype, image_ids)
    return made if short else replace(made, prepared=mask_blocks.cut(made.mask))


def usable(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float) -> bool:
    """Whether a faster way is known. An op without parameters may choose by sizes (`ops/dispatch.py`)."""
    if has_panels(q, k, v, plan, dropout_p):
        return True
    known = has_rows(q, plan, dropout_p) or has_blocks(q, plan, dropout_p)
    return known or flash_cpu.usable(q, dropout_p)


def has_panels(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float
) -> bool:
    """Whether the plan has panels or all see all, and the kernels take these."""
    if dropout_p:
        return False
    if plan is None:  # a crop of few patches is one small call of PyTorch's
        has = q.shape[2] == k.shape[2] >= QUERIES
    else:
        has = isinstance(plan.prepared, Panels)
    return has and kernels_cpu.usable(q, k, v)


def has_rows(q: Tensor, plan: AttentionPlan | None, dropout_p: float) -> bool:
    """Whether the plan has documents as rows, of q's type."""
    if plan is None or dropout_p or torch.compiler.is_compiling():
        return False
    return isinstance(plan.prepared, documents.Documents) and plan.prepared.mask.dtype == q.dtype


def has_blocks(q: Tensor, plan: AttentionPlan | None, dropout_p: float) -> bool:
    """Whether the plan has blocks of q's type."""
    if plan is None or torch.compiler.is_compiling():  # blocks would be compiled in
        return False
    return mask_blocks.usable(q, plan.prepared, dropout_p)


def tree_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float
) -> Tensor:
    """q [B, H, T, d], k and v [B, G, T, d] -> [B, H, T, d]; plain where no faster way is known."""
    if has_panels(q, k, v, plan, dropout_p):
        seen = panels.all_seen(len(q), q.shape[2]) if plan is None else plan.prepared
        return kernels_cpu.attention(q, k, v, seen)
    if has_rows(q, plan, dropout_p):
        return documents.attention(q, k, v, plan.prepared)
    if has_blocks(q, plan, dropout_p):  # the plan decides, also where a name is forced
        return mask_blocks.attention(q, k, v, plan.prepared)
    if flash_cpu.usable(q, dropout_p):
        return reference.by(flash_cpu.attention, q, k, v, plan, dropout_p)
    return reference.tree_attention(q, k, v, plan, dropout_p)
