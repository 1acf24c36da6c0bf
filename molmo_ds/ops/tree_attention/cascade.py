"""Tree attention as up to three flash-attention calls on varying lengths, merged by their log-sum-exp: "cuda".

The first call is causal inside every run of tokens (a prefix or a branch), the second lets the branches see their own
document's prefix, the third lets the tokens of images see those after them: in reverse order that is causal too, where
each key is one place late so that no token sees itself twice. The backward passes are given the merged output and
log-sum-exp. S tokens of all sequences, one after the other; H heads, G key-value heads, d head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops.tree_attention import reference
from molmo_ds.ops.tree_attention.ascending import UNORDERED, ascend
from molmo_ds.ops.tree_attention.reference import AttentionPlan

aten = torch.ops.aten


@dataclass(frozen=True)
class Lengths:
    """Boundaries of the parts of one call: part i has queries starts_q[i] : starts_q[i + 1], keys in the same way."""

    starts_q: Tensor  # int32 [n + 1]
    starts_k: Tensor
    longest_q: int
    longest_k: int


@dataclass(frozen=True)
class Call:
    """A call in which some tokens see some others; `queries` and `keys` are int64 indices into S."""

    lengths: Lengths
    queries: Tensor
    keys: Tensor
    causal: bool


@dataclass(frozen=True)
class Segments:
    """The first call, of all tokens, and the others that these ids need: branches to prefixes, tokens of images."""

    runs: Lengths
    others: tuple[Call, ...]


def plan_usable(
    document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None
) -> bool:
    """Never by itself: the cascade runs on demand."""
    return False


def plan(
    document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype, image_ids: Tensor | None
) -> AttentionPlan:
    """Segments for ids int [B, T], which are copied to the host; ValueError for unordered ids."""
    if not ascend(document_ids, branch_ids):
        raise ValueError(UNORDERED)
    with torch.device("cpu"):  # what is made on the host stays there, whatever the default device
        prepared = segments(document_ids, branch_ids, image_ids)
    return AttentionPlan(document_ids, branch_ids, image_ids, prepared=prepared)


def usable(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float) -> bool:
    """Whether the plan is one of segments."""
    return plan is not None and isinstance(plan.prepared, Segments)


def tree_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None, dropout_p: float
) -> Tensor:
    """q [B, H, T, d], k and v [B, G, T, d] -> [B, H, T, d]; plain where the plan is not one of segments.

    On a GPU in half precision, as flash attention asks.
    """
    if not usable(q, k, v, plan, dropout_p):
        return reference.tree_attention(q, k, v, plan, dropout_p)
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
    out = _Cascade.apply(*flat, plan.prepared)
    return out.unflatten(0, (q.shape[0], q.shape[2])).transpose(1, 2)


def segments(document_ids: Tensor, branch_ids: Tensor, image_ids: Tensor | None) -> Segments:
    """Segments of ids int [B, T]; copies the ids to the host. Padding is a run of its own."""
    device = document_ids.device
    sequence = torch.arange(len(document_ids))[:, None].expand(document_ids.shape)
    document = document_ids.cpu().long()
    branch = branch_ids.cpu().long()
    keys = torch.stack((sequence, document, branch), -1).flatten(0, 1)
    runs, length = torch.unique_consecutive(keys, dim=0, return_counts=True)
    document = torch.unique_consecutive(runs[:, :2], dim=0, return_inverse=True)[1]
    shared = (runs[:, 2] == 0) & (runs[:, 1] != 0)
    branched = (runs[:, 2] != 0) & (runs[:, 1] != 0)
    count = int(document[-1]) + 1
    of_branches = torch.zeros(count, dtype=torch.int64).index_add_(
        0, document[branched], length[branched]
    )
    of_prefix = torch.zeros(count, dtype=torch.int64).index_add_(
        0, document[shared], length[shared]
    )
    both = (of_branches > 0) & (of_prefix > 0)
    token_run = torch.repeat_interleave(torch.arange(len(runs)), length)
    used = both[document[token_run]]
    others = []
    if both.any():
        branches = (used & branched[token_run]).nonzero()[:, 0].to(device)
        prefixes = (used & shared[token_run]).nonzero()[:, 0].to(device)
        lengths = _lengths(of_branches[both], of_prefix[both], device)
        others.append(Call(lengths, branches, prefixes, False))
    if image_ids is not None:
        images = torch.where(keys[:, 1] != 0, image_ids.cpu().long().flatten(), 0)
        later = _later(token_run, images, device)
        others += [] if later is None else [later]
    return Segments(_lengths(length, length, device), tuple(others))


def _later(run: Tensor, images: Tensor, device: torch.device) -> Call | None:
    """The call in which each token sees those after it with its run and its image, both int64 [S]."""
    shown = (images != 0).nonzero()[:, 0]
    groups, group = torch.stack((run, images), -1)[shown].unique(dim=0, return_inverse=True)
    backwards = torch.arange(len(shown)).flip(0)
    order = backwards[group[backwards].argsort(stable=True)]  # by group, in each from the last
    sizes = torch.bincount(group, minlength=len(groups))
    starts = sizes.cumsum(0) - sizes
    first = torch.zeros(len(order), dtype=torch.bool)
    first[starts] = True
    last = first.roll(-1)  # of a group, in this order
    lengths = (sizes - 1)[sizes > 1]
    if not len(lengths):
        return None
    tokens = shown[order]
    queries = tokens[~first].to(device)
    keys = tokens[~last].to(device)
    return Call(_lengths(lengths, lengths, device), queries, keys, True)


class _Cascade(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: Segments) -> Tensor:
        out, lse, *state = _forward(q, k, v, parts.runs, True)
        states = [state]
        for call in parts.others:
            rows = call.queries
            keys = call.keys
            other, other_lse, *state = _forward(
                q[rows], k[keys], v[keys], call.lengths, call.causal
            )
            own = out[rows]
            own_lse = lse[:, rows]
            merged = torch.logaddexp(own_lse, other_lse)
            share = [(x - merged).exp().T[..., None] for x in (own_lse, other_lse)]
            out[rows] = (own * share[0] + other * share[1]).to(out.dtype)
            lse[:, rows] = merged
            states.append(state)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.parts = parts
        ctx.states = states
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        parts = ctx.parts
        grad = grad.contiguous()
        of_q, of_k, of_v = _backward(grad, q, k, v, out, lse, parts.runs, True, ctx.states[0])
        for call, state in zip(parts.others, ctx.states[1:]):
            rows = call.queries
            keys = call.keys
            more = _backward(
                grad[rows],
                q[rows],
                k[keys],
                v[keys],
                out[rows],
                lse[:, rows],
                call.lengths,
                call.causal,
                state,
            )
            of_q[rows] += more[0]  # every index occurs once
            of_k[keys] += more[1]
            of_v[keys] += more[2]
        return of_q, of_k, of_v, None


def _forward(q: Tensor, k: Tensor, v: Tensor, at: Lengths, causal: bool) -> tuple[Tensor, ...]:
    # -> output [S, H, d], log-sum-exp [H, S], and what the backward pass wants back
    if q.is_cuda:
        result = aten._flash_attention_forward(
            q, k, v, at.starts_q, at.starts_k, at.longest_q, at.longest_k, 0.0, causal, False
        )
        return result[:4]
    parts = [
        aten._scaled_dot_product_flash_attention_for_cpu(*x, 0.0, causal)
        for x in _split(q, k, v, at)
    ]
    out = torch.cat([_rows(part) for part, _ in parts])
    lse = torch.cat([part[0] for _, part in parts], 1)
    return out, lse


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    at: Lengths,
    causal: bool,
    state: list,
) -> tuple[Tensor, Tensor, Tensor]:
    if q.is_cuda:
        return aten._flash_attention_backward(
            grad,
            q,
            k,
            v,
            out,
            lse.contiguous(),
            at.starts_q,
            at.starts_k,
            at.longest_q,
            at.longest_k,
            0.0,
            causal,
            *state,
        )
    starts = at.starts_q.tolist()
    grads = []
    for i, (one_q, one_k, one_v) in enumerate(_split(q, k, v, at)):
        rows = slice(starts[i], starts[i + 1])
        one = [_heads(x[rows]) for x in (grad, out)]
        part = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            one[0], one_q, one_k, one_v, one[1], lse[None, :, rows].contiguous(), 0.0, causal
        )
        grads.append([_rows(x) for x in part])
    of_q, of_k, of_v = (torch.cat(x) for x in zip(*grads))
    groups = (k.shape[1], -1)
    return of_q, of_k.unflatten(1, groups).sum(2), of_v.unflatten(1, groups).sum(2)


def _split(q: Tensor, k: Tensor, v: Tensor, at: Lengths) -> list[list[Tensor]]:
    # per part [1, H, s, d] each, key-value heads repeated: the CPU's operator takes neither lengths nor groups
    group = q.shape[1] // k.shape[1]
    sizes_q = at.starts_q.diff().tolist()
    sizes_k = at.starts_k.diff().tolist()
    keys, values = (x.repeat_interleave(group, 1).split(sizes_k) for x in (k, v))
    return [[_heads(x) for x in part] for part in zip(q.split(sizes_q), keys, values)]


def _heads(x: Tensor) -> Tensor:
    return x.transpose(0, 1)[None].contiguous()


def _rows(x: Tensor) -> Tensor:
    return x[0].transpose(0, 1)


def _lengths(q: Tensor, k: Tensor, device: torch.device) -> Lengths:
    starts_q = F.pad(q.cumsum(0), (1, 0)).to(device, torch.int32)
    starts_k = F.pad(k.cumsum(0), (1, 0)).to(device, torch.int32)
    return Lengths(starts_q, starts_k, int(q.max()), int(k.max()))
