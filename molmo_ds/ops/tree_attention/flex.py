"""Tree attention on a GPU by FlexAttention, whose blocks are counted from runs of ids: registered as "triton".

A kernel is compiled for each T, in seconds, so T is padded to few lengths: `padded_length`. Padding sees itself alone,
so blocks of it cost nearly nothing.

Shapes: B sequences, H heads, G key-value heads, T tokens, d head width, S blocks of keys.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from molmo_ds.ops.tree_attention import reference
from molmo_ds.ops.tree_attention.ascending import UNORDERED, ascend
from molmo_ds.ops.tree_attention.reference import AttentionPlan

BLOCK = 128  # tokens on a side of FlexAttention's blocks
NARROWEST = 16  # heads that its kernels take
LENGTHS = 64  # that may be compiled


def plan_usable(
    document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None
) -> bool:
    """Whether a plan is made of blocks: by device."""
    return document_ids.is_cuda


def plan(
    document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None
) -> AttentionPlan:
    """FlexAttention's blocks for ids int [B, T]; refuses on the device, without waiting, ids that do not ascend."""
    torch._assert_async(ascend(document_ids, branch_ids), UNORDERED)
    more = padded_length(document_ids.shape[1]) - document_ids.shape[1]
    ids = (document_ids, branch_ids, image_ids)
    padded = (None if x is None else F.pad(x, (0, more)) for x in ids)
    return AttentionPlan(*ids, prepared=blocks(*padded))


def padded_length(tokens: int) -> int:
    """The length at which T tokens are attended to, a multiple of BLOCK.

    Packing gives training few lengths. Prompts have any: without gradients only 128, 256, 384, 512, 768, 1024, 1536 ...
    are used, so that a compilation serves many of them.
    """
    blocks = -(-tokens // BLOCK)
    if torch.is_grad_enabled():
        return blocks * BLOCK
    power = 1 << (blocks - 1).bit_length()
    return BLOCK * (power * 3 // 4 if blocks <= power * 3 // 4 and power > 2 else power)


def usable(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float) -> bool:
    """Whether the plan is one of blocks."""
    return plan is not None and isinstance(plan.prepared, BlockMask)


def tree_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float
) -> Tensor:
    """q [B, H, T, d], k and v [B, G, T, d] -> [B, H, T, d]; plain where the plan is not one of blocks."""
    if not usable(q, k, v, plan, dropout_p):  # the plan decides, also where a name is forced
        return reference.tree_attention(q, k, v, plan, dropout_p)
    # on a CPU there is only its eager forward pass
    plain = torch.compiler.is_compiling() or not q.is_cuda
    run = flex_attention if plain else _compiled()
    tokens, width = q.shape[2:]
    more = (0, max(NARROWEST - width, 0), 0, plan.prepared.seq_lengths[0] - tokens)
    if any(more):
        q, k, v = (F.pad(x, more) for x in (q, k, v))
    out = run(
        q, k, v, block_mask=plan.prepared, scale=width**-0.5, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[:, :, :tokens, :width]


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    # beyond the limit, which is 8, torch runs the version that holds all scores, without a word
    torch._dynamo.config.recompile_limit = max(LENGTHS, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=False)


def reach(document_ids: Tensor, branch_ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Intervals [start, end) of the keys up to itself that each token sees, [B, T] each: prefix, and own branch."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    document = torch.where(changes(document_ids), index, 0).cummax(1).values
    branch = torch.where(changes(document_ids, branch_ids), index, 0).cummax(1).values
    shared = (branch_ids == 0).long()
    real = document_ids != 0
    count = shared.cumsum(1)
    # tokens of the document's prefix up to this one
    prefix = count - (count - shared).gather(1, document)
    own = real & (branch_ids != 0)
    return [
        (document, document + torch.where(real, prefix, 0)),
        (torch.where(own, branch, index), torch.where(own | ~real, index + 1, index)),
    ]


def changes(*ids: Tensor) -> Tensor:
    """bool [B, T]: whether one of the ids, int [B, T], differs from that of the token before."""
    differ = torch.stack([x[:, 1:] != x[:, :-1] for x in ids]).any(0)
    return F.pad(differ, (1, 0), value=True)


def later_in_images(
    document_ids: Tensor, branch_ids: Tensor, image_ids: Tensor, low: Tensor
) -> Tensor:
    """int64 [B, T, S]: keys after each token that it sees in its images, in each block [low, low + BLOCK).

    These are the later tokens with its document, branch and image, wherever text lies between them. Tokens are sorted
    by these ids and then by place, so that what a block has of them lies between two places that a search finds.
    """
    batch, tokens = document_ids.shape
    run = changes(document_ids, branch_ids).long().cumsum(1)
    by_image = image_ids.argsort(dim=1, stable=True)
    order = by_image.gather(1, run.gather(1, by_image).argsort(dim=1, stable=True))
    group = changes(run.gather(1, order), image_ids.gather(1, order)).long().cumsum(1)
    sorted_keys = group * tokens + order
    first = torch.zeros_like(group).scatter(1, order, group)[..., None] * tokens
    index = torch.arange(tokens, device=low.device)[:, None]
    begin = torch.maximum(index + 1, low).clamp(max=tokens)
    end = torch.maximum(begin, (low + BLOCK).clamp(max=tokens))
    counts = [
        torch.searchsorted(sorted_keys, (first + bound).flatten(1)).view(batch, tokens, -1)
        for bound in (begin, end)
    ]
    shown = (image_ids != 0) & (document_ids != 0)
    return (counts[1] - counts[0]) * shown[..., None]


def blocks(document_ids: Tensor, branch_ids: Tensor, image_ids: Tensor | None) -> BlockMask:
    """The block mask of ids int [B, T], from the number of keys that each query sees in each block.

    It counts B * T * (T / BLOCK) numbers and waits for nothing.
    """
    batch, tokens = document_ids.shape
    side = -(-tokens // BLOCK)
    low = torch.arange(side, device=document_ids.device) * BLOCK
    seen = torch.zeros(batch, tokens, side, dtype=torch.int64, device=low.device)
    for start, end in reach(document_ids, branch_ids):
        inside = torch.minimum(end[..., None], low + BLOCK) - torch.maximum(start[..., None], low)
        seen += inside.clamp(min=0)
    if image_ids is not None:
        seen += later_in_images(document_ids, branch_ids, image_ids, low)
    seen = F.pad(seen, (0, 0, 0, side * BLOCK - tokens))
    seen = seen.view(batch, 1, side, BLOCK, side).sum(3)
    full = seen == BLOCK * BLOCK
    sparse = []
    for chosen in ((seen > 0) & ~full, full):
        first = chosen.int().argsort(dim=-1, descending=True, stable=True)
        sparse += [chosen.sum(-1, dtype=torch.int32), first.int()]
    rule = reference.rule(document_ids, branch_ids, image_ids)
    return BlockMask.from_kv_blocks(
        *sparse, BLOCK_SIZE=BLOCK, mask_mod=rule, seq_lengths=(tokens, tokens)
    )
