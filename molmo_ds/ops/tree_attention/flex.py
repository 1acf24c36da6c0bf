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
    tokens = document_ids.shape[1]
    more = padded_length(tokens) - tokens
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
    fewer = power * 3 // 4
    if power > 2 and blocks <= fewer:
        return fewer * BLOCK
    return power * BLOCK


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
    wider = max(NARROWEST - width, 0)
    longer = plan.prepared.seq_lengths[0] - tokens
    if wider or longer:
        more = (0, wider, 0, longer)
        q, k, v = (F.pad(x, more) for x in (q, k, v))
    out = run(
        q,
        k,
        v,
        block_mask=plan.prepared,
        scale=width**-0.5,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[:, :, :tokens, :width]


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    # beyond the limit, which is 8, torch runs the version that holds all scores, without a word
    torch._dynamo.config.recompile_limit = max(LENGTHS, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=False)


def reach(document_ids: Tensor, branch_ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Intervals [start, end) of the keys up to itself that each token sees, [B, T] each: prefix, and own branch."""
    tokens = document_ids.shape[1]
    index = torch.arange(tokens, device=document_ids.device)
    index = index.expand_as(document_ids)
    document = _latest(index, changes(document_ids))
    branch = _latest(index, changes(document_ids, branch_ids))
    shared = (branch_ids == 0).long()
    real = document_ids != 0
    count = shared.cumsum(1)
    # tokens of the document's prefix up to this one
    before = count - shared
    prefix = count - before.gather(1, document)
    prefix = torch.where(real, prefix, 0)
    own = real & (branch_ids != 0)
    begin = torch.where(own, branch, index)
    end = torch.where(own | ~real, index + 1, index)
    return [(document, document + prefix), (begin, end)]


def _latest(index: Tensor, begins: Tensor) -> Tensor:
    begun = torch.where(begins, index, 0)
    return begun.cummax(1).values


def changes(*ids: Tensor) -> Tensor:
    """bool [B, T]: whether one of the ids, int [B, T], differs from that of the token before."""
    differ = torch.stack([x[:, 1:] != x[:, :-1] for x in ids]).any(0)
    return F.pad(differ, (1, 0), value=True)


def later_in_images(
    document_ids: Tensor,
    branch_ids: Tensor,
    image_ids: Tensor,
    low: Tensor,
) -> Tensor:
    """int64 [B, T, S]: keys after each token that it sees in its images, in each block [low, low + BLOCK).

    These are the later tokens with its document, branch and image, wherever text lies between them. Tokens are sorted
    by these ids and then by place, so that what a block has of them lies between two places that a search finds.
    """
    batch, tokens = document_ids.shape
    run = changes(document_ids, branch_ids).long().cumsum(1)
    by_image = image_ids.argsort(dim=1, stable=True)
    runs = run.gather(1, by_image)
    by_run = runs.argsort(dim=1, stable=True)
    order = by_image.gather(1, by_run)
    runs = run.gather(1, order)
    images = image_ids.gather(1, order)
    group = changes(runs, images).long().cumsum(1)
    sorted_keys = group * tokens + order
    group_of = torch.zeros_like(group).scatter(1, order, group)
    first = group_of[..., None] * tokens
    index = torch.arange(tokens, device=low.device)[:, None]
    high = (low + BLOCK).clamp(max=tokens)
    begin = torch.maximum(index + 1, low).clamp(max=tokens)
    end = torch.maximum(begin, high)
    counts = []
    for bound in (begin, end):
        wanted = (first + bound).flatten(1)
        found = torch.searchsorted(sorted_keys, wanted)
        counts.append(found.view(batch, tokens, -1))
    shown = (image_ids != 0) & (document_ids != 0)
    between = counts[1] - counts[0]
    return between * shown[..., None]


def blocks(document_ids: Tensor, branch_ids: Tensor, image_ids: Tensor | None) -> BlockMask:
    """The block mask of ids int [B, T], from the number of keys that each query sees in each block.

    It counts B * T * (T / BLOCK) numbers and waits for nothing.
    """
    batch, tokens = document_ids.shape
    side = -(-tokens // BLOCK)
    low = torch.arange(side, device=document_ids.device) * BLOCK
    high = low + BLOCK
    seen = torch.zeros(batch, tokens, side, dtype=torch.int64, device=low.device)
    for start, end in reach(document_ids, branch_ids):
        last = torch.minimum(end[..., None], high)
        first = torch.maximum(start[..., None], low)
        inside = last - first
        seen += inside.clamp(min=0)
    if image_ids is not None:
        seen += later_in_images(document_ids, branch_ids, image_ids, low)
    lacking = side * BLOCK - tokens
    seen = F.pad(seen, (0, 0, 0, lacking))
    seen = seen.view(batch, 1, side, BLOCK, side).sum(3)
    full = seen == BLOCK * BLOCK
    partial = (seen > 0) & ~full
    sparse = []
    for chosen in (partial, full):
        count = chosen.sum(-1, dtype=torch.int32)
        chosen_first = chosen.int().argsort(dim=-1, descending=True, stable=True)
        sparse += [count, chosen_first.int()]
    return BlockMask.from_kv_blocks(
        *sparse,
        BLOCK_SIZE=BLOCK,
        mask_mod=reference.rule(document_ids, branch_ids, image_ids),
        seq_lengths=(tokens, tokens),
    )
