"""Attention over packed message trees.

A query sees a key of the same document, not later than itself, that lies in the shared prefix (branch 0) or in its own
branch. On GPUs the ids must ascend: document after document, in each its prefix, then its branches; padding last.
With `image_ids` the tokens of one image (of one document and branch, wherever text lies between) also see those after
them.

No parameters: the plan and the sizes of a batch may decide which implementation runs (see `ops/dispatch.py`). The
projections before and the one after keep the order of their nodes, hence of their gradients, whichever it is.

Shapes: B sequences, H heads, G key-value heads, T tokens, d head width.
"""

import torch
from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.tree_attention import cascade, cpu, flex, reference
from molmo_ds.ops.tree_attention.reference import AttentionPlan, visible

__all__ = ["AttentionPlan", "attention_plan", "tree_attention", "visible"]

dispatch.register("attention_plan", "torch", reference.attention_plan)
dispatch.register("attention_plan", "cpu", cpu.plan, cpu.plan_usable)
dispatch.register("attention_plan", "triton", flex.plan, flex.plan_usable)
dispatch.register("attention_plan", "cuda", cascade.plan, cascade.plan_usable)
dispatch.register("tree_attention", "torch", reference.tree_attention)
dispatch.register("tree_attention", "cpu", cpu.tree_attention, cpu.usable)
dispatch.register("tree_attention", "triton", flex.tree_attention, flex.usable)
dispatch.register("tree_attention", "cuda", cascade.tree_attention, cascade.usable)


def attention_plan(
    document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None = None
) -> AttentionPlan:
    """The plan for document_ids and branch_ids, int [B, T], for queries of `dtype`; see AttentionPlan for the ids.

    A mask on the CPU, FlexAttention's blocks on a GPU; MOLMO_DS_OPS=cuda chooses the cascade, which copies the ids to
    the host.
    """
    return dispatch.call("attention_plan", document_ids, branch_ids, dtype, image_ids)


def tree_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float = 0.0
) -> Tensor:
    """q [B, H, T, d], k and v [B, G, T, d] with H a multiple of G -> [B, H, T, d]; without a plan all see all.

    Dropout of the shares needs the whole mask: on a GPU it is slow.
    """
    if plan is not None and dropout_p and plan.mask is None:
        plan = reference.attention_plan(plan.document_ids, plan.branch_ids, q.dtype, plan.image_ids)
    return dispatch.call("tree_attention", q, k, v, plan, dropout_p)
