"""Attention over packed message trees.

A query sees a key of the same document, not behind itself, that lies in the shared prefix (branch 0) or in its own
branch. On GPUs the ids must ascend: document after document, in each its prefix, then its branches; padding last.
With `image_ids` the tokens of one image also see those behind them.

Shapes: B sequences, H heads, G key-value heads, T tokens, d head width.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from molmo_ds.ops import cascade, dispatch, mask_blocks

BLOCK = 128  # tokens on a side of FlexAttention's blocks
NARROWEST = 16  # heads that its kernels take
UNORDERED = "Document and branch ids must ascend: documents, in each the prefix, then its branches, padding last."


@dataclass(frozen=True)
class AttentionPlan:
    """What the layers of one forward pass share: the ids, and one of mask, blocks and segments."""

    document_ids: Tensor  # int [B, T], 0 = padding, which sees only itself
    branch_ids: Tensor  # int [B, T]
    image_ids: Tensor | None = None  # int [B, T], 1, 2, ... per image, 0 = text
    mask: Tensor | None = None  # [B, 1, T, T], 0 or -inf, added to the scores
    lengths: tuple[int, ...] | None = None  # with a mask on the CPU: of the documents, one after the other in B * T
    cpu_blocks: mask_blocks.Blocks | None = None  # with a long mask on the CPU, where they pay
    blocks: BlockMask | None = None  # of FlexAttention
    segments: cascade.Segments | None = None  # of the flash-attention cascade


def attention_plan(
    document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None = None
) -> AttentionPlan:
    """The plan for document_ids and branch_ids, int [B, T], for queries of `dtype`; see AttentionPlan for the ids.

    A mask on the CPU, FlexAttention's blocks on a GPU; MOLMO_DS_OPS=cuda chooses the cascade, which copies the ids to
    the host and knows no image_ids (ValueError).
    """
    return dispatch.call("attention_plan", document_ids, branch_ids, dtype, image_ids)


def tree_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float = 0.0) -> Tensor:
    """q [B, H, T, d], k and v [B, G, T, d] with H a multiple of G -> [B, H, T, d]; without a plan all see all.

    Dropout of the shares needs the whole mask: on a GPU it is slow.
    """
    if plan is not None and dropout_p and plan.mask is None:
        plan = _plan_mask(plan.document_ids, plan.branch_ids, q.dtype, plan.image_ids)
    return dispatch.call("tree_attention", q, k, v, plan, dropout_p)


def visible(document_ids: Tensor, branch_ids: Tensor, image_ids: Tensor | None = None) -> Tensor:
    """bool [B, T, T] (query, key): the rule itself."""
    b = torch.arange(len(document_ids), device=document_ids.device)[:, None, None]
    index = torch.arange(document_ids.shape[1], device=document_ids.device)
    return _rule(document_ids, branch_ids, image_ids)(b, None, index[:, None], index)


def _rule(document_ids: Tensor, branch_ids: Tensor, image_ids: Tensor | None) -> Callable[..., Tensor]:
    # FlexAttention calls this with scalars, `visible` with broadcast indices
    def seen(b, h, query, key):  # noqa: ANN001, ANN202
        same = (document_ids[b, query] == document_ids[b, key]) & (document_ids[b, key] != 0)
        branch = (branch_ids[b, key] == 0) | (branch_ids[b, query] == branch_ids[b, key])
        before = query >= key
        if image_ids is not None:
            before = before | ((image_ids[b, query] == image_ids[b, key]) & (image_ids[b, key] != 0))
        return (same & branch & before) | (query == key)

    return seen


@dispatch.implements("attention_plan", "torch")
def _plan_mask(document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None) -> AttentionPlan:
    seen = visible(document_ids, branch_ids, image_ids)[:, None]
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
    return AttentionPlan(document_ids, branch_ids, image_ids, mask, _lengths(document_ids))


def _long(document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None) -> bool:
    on_cpu = document_ids.device.type == "cpu" and not torch.compiler.is_compiling()
    return on_cpu and dtype in mask_blocks.TYPES and document_ids.shape[1] > mask_blocks.BLOCK


@dispatch.implements("attention_plan", "cpu", _long)
def _plan_cpu(document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None) -> AttentionPlan:
    plan = _plan_mask(document_ids, branch_ids, dtype, image_ids)
    # documents shorter than the blocks run one by one in less time
    short = plan.lengths is not None and document_ids.numel() <= mask_blocks.BLOCK * len(plan.lengths)
    return plan if short else replace(plan, cpu_blocks=mask_blocks.cut(plan.mask))


@dispatch.implements("attention_plan", "triton", lambda document_ids, *rest: document_ids.is_cuda)
def _plan_blocks(
    document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None
) -> AttentionPlan:
    torch._assert_async(_ascend(document_ids, branch_ids), UNORDERED)
    plan = AttentionPlan(document_ids, branch_ids, image_ids)
    return replace(plan, blocks=_blocks(document_ids, branch_ids, image_ids))


@dispatch.implements("attention_plan", "cuda", lambda *args: False)  # on demand
def _plan_segments(
    document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None
) -> AttentionPlan:
    if image_ids is not None:
        raise ValueError("The cascade cannot attend inside an image both ways; unset MOLMO_DS_OPS=cuda.")
    if not _ascend(document_ids, branch_ids):
        raise ValueError(UNORDERED)
    return AttentionPlan(document_ids, branch_ids, segments=cascade.segments(document_ids, branch_ids))


@dispatch.implements("tree_attention", "torch")
def _torch(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float) -> Tensor:
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if plan is None or torch.compiler.is_compiling() or plan.lengths is None:  # lengths would be compiled in
        return F.scaled_dot_product_attention(q, k, v, None if plan is None else plan.mask, dropout_p)
    return _each_document(q, k, v, plan.mask, plan.lengths, dropout_p)


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float) -> bool:
    if plan is None or torch.compiler.is_compiling():  # blocks would be compiled in
        return False
    return mask_blocks.usable(q, plan.cpu_blocks, dropout_p)


@dispatch.implements("tree_attention", "cpu", _in_blocks)
def _cpu(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float) -> Tensor:
    if not _in_blocks(q, k, v, plan, dropout_p):  # the plan decides, also where a name is forced
        return _torch(q, k, v, plan, dropout_p)
    return mask_blocks.attention(q, k, v, plan.cpu_blocks)


@dispatch.implements("tree_attention", "triton", lambda q, k, v, plan, p: plan is not None and plan.blocks is not None)
def _flex(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float) -> Tensor:
    if plan is None or plan.blocks is None:  # the plan decides, also where a name is forced
        return _torch(q, k, v, plan, dropout_p)
    plain = torch.compiler.is_compiling() or not q.is_cuda  # on a CPU there is only its eager forward pass
    run, width = flex_attention if plain else _compiled(), q.shape[3]
    if width < NARROWEST:
        q, k, v = (F.pad(x, (0, NARROWEST - width)) for x in (q, k, v))
    out = run(q, k, v, block_mask=plan.blocks, scale=width**-0.5, enable_gqa=q.shape[1] != k.shape[1])
    return out[..., :width]


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)


@dispatch.implements("tree_attention", "cuda", lambda q, k, v, plan, p: plan is not None and plan.segments is not None)
def _cascade(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float) -> Tensor:
    if plan is None or plan.segments is None:
        return _torch(q, k, v, plan, dropout_p)
    return cascade.attention(q, k, v, plan.segments)


def _lengths(document_ids: Tensor) -> tuple[int, ...] | None:
    if document_ids.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    key = document_ids + (torch.arange(len(document_ids)) * (int(document_ids.max()) + 1))[:, None]
    lengths = torch.unique_consecutive(key, return_counts=True)[1].tolist()
    return tuple(lengths) if len(lengths) > 1 else None


def _each_document(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, lengths: tuple[int, ...], dropout_p: float) -> Tensor:
    # for documents shorter than mask_blocks' blocks
    batch, heads, tokens, width = q.shape
    rows = [x.transpose(0, 1).reshape(1, heads, batch * tokens, width).split(lengths, 2) for x in (q, k, v)]
    out, at = [], 0
    for one_q, one_k, one_v, length in zip(*rows, lengths):
        b, start = divmod(at, tokens)
        part = mask[b : b + 1, :, start : start + length, start : start + length]
        out.append(F.scaled_dot_product_attention(one_q, one_k, one_v, part, dropout_p))
        at += length
    return torch.cat(out, 2).view(heads, batch, tokens, width).transpose(0, 1)


def _ascend(document_ids: Tensor, branch_ids: Tensor) -> Tensor:
    # bool: whether every run of equal ids is whole, which intervals and segments take for granted
    last = torch.iinfo(document_ids.dtype).max
    document = document_ids.masked_fill(document_ids == 0, last)
    step = document.diff(dim=1)
    same_branch = (branch_ids.diff(dim=1) >= 0) | (document_ids[:, 1:] == 0)
    return ((step > 0) | ((step == 0) & same_branch)).all()


def _reach(document_ids: Tensor, branch_ids: Tensor, image_ids: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Intervals [start, end) of the keys that each token sees, [B, T] each: prefix, own branch, rest of own image."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)

    def starts(*ids: Tensor) -> Tensor:  # of the run of equal ids that each token is in
        changes = torch.stack([F.pad(x[:, 1:] != x[:, :-1], (1, 0), value=True) for x in ids]).any(0)
        return torch.where(changes, index, 0).cummax(1).values

    document, branch = starts(document_ids), starts(document_ids, branch_ids)
    shared, real = (branch_ids == 0).long(), document_ids != 0
    count = shared.cumsum(1)
    prefix = count - (count - shared).gather(1, document)  # tokens of the document's prefix up to this one
    own = real & (branch_ids != 0)
    out = [
        (document, document + torch.where(real, prefix, 0)),
        (torch.where(own, branch, index), torch.where(own | ~real, index + 1, index)),
    ]
    if image_ids is not None:
        last = index.shape[1] - starts(*(x.flip(1) for x in (document_ids, branch_ids, image_ids))).flip(1)
        out.append((index + 1, torch.where(real & (image_ids != 0), last, index + 1)))
    return out


def _blocks(document_ids: Tensor, branch_ids: Tensor, image_ids: Tensor | None) -> BlockMask:
    # counts of visible keys from the intervals: B * T * (T / BLOCK) numbers instead of B * T * T, and no host sync
    batch, tokens = document_ids.shape
    side = -(-tokens // BLOCK)
    low = torch.arange(side, device=document_ids.device) * BLOCK
    seen = torch.zeros(batch, tokens, side, dtype=torch.int64, device=low.device)
    for start, end in _reach(document_ids, branch_ids, image_ids):
        inside = torch.minimum(end[..., None], low + BLOCK) - torch.maximum(start[..., None], low)
        seen += inside.clamp(min=0)
    seen = F.pad(seen, (0, 0, 0, side * BLOCK - tokens)).view(batch, 1, side, BLOCK, side).sum(3)
    full = seen == BLOCK * BLOCK
    sparse = []
    for chosen in ((seen > 0) & ~full, full):
        sparse += [chosen.sum(-1, dtype=torch.int32), chosen.int().argsort(dim=-1, descending=True, stable=True).int()]
    rule = _rule(document_ids, branch_ids, image_ids)
    return BlockMask.from_kv_blocks(*sparse, BLOCK_SIZE=BLOCK, mask_mod=rule, seq_lengths=(tokens, tokens))
