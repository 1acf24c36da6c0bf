"""The loss where the words are split over the ranks of a group (tensor parallelism).

Shapes: R rows, D width, V words of this rank, n rows of a chunk.
"""

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from molmo_ds.ops.weighted_cross_entropy import chunks


def weighted_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_weights: Tensor,
    z_loss: float,
    needs: tuple[bool, bool],
    dtype: torch.dtype,
    group: dist.ProcessGroup,
) -> tuple[Tensor, ...]:
    """The three sums over all words, for weight [V, D] of this rank and the same hidden and labels on every rank."""
    return _Sharded.apply(
        hidden, weight, labels, loss_weights, z_loss, needs, dtype, group
    ).unbind()


class _Sharded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        loss_weights: Tensor,
        z_loss: float,
        needs: tuple[bool, bool],
        dtype: torch.dtype,
        group: dist.ProcessGroup,
    ) -> Tensor:
        rows = functools.partial(_rows, group=group)
        sums, *grads = chunks.run(hidden, weight, labels, loss_weights, z_loss, needs, dtype, rows)
        if needs[0]:
            dist.all_reduce(grads[0], group=group)
        ctx.save_for_backward(*grads)
        ctx.z_loss = z_loss
        ctx.needs = needs
        return sums

    @staticmethod
    def backward(ctx: Any, of_sums: Tensor) -> tuple[Tensor | None, ...]:
        return chunks.gradients(ctx, of_sums)


def _rows(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    z_loss: float,
    grad: bool,
    group: dist.ProcessGroup,
) -> Tensor:
    # as chunks.rows_torch, for the words rank * V ... of this rank
    rank = dist.get_rank(group)
    wide = logits.to(weights.dtype)
    index = torch.arange(len(logits), device=logits.device)
    top, first = wide.max(-1)
    shares = wide.new_empty(dist.get_world_size(group) * len(wide), 2)
    own = torch.stack((wide.logsumexp(-1), top), -1)
    dist.all_gather_into_tensor(shares, own, group=group)
    shares = shares.view(-1, *own.shape)
    lse = shares[..., 0].logsumexp(0)
    winner = shares[..., 1].argmax(0)  # the lowest rank of equals, as argmax
    mine = labels - rank * wide.shape[1]
    here = (mine >= 0) & (mine < wide.shape[1])
    mine = mine.clamp(0, wide.shape[1] - 1)
    right = here & (winner == rank) & (first == mine)
    at_label = torch.where(here, wide[index, mine], 0)
    split = torch.stack((at_label, right.to(wide.dtype)), -1)
    dist.all_reduce(split, group=group)
    at_label, right = split.unbind(-1)
    sums = torch.stack((lse - at_label, z_loss * lse**2, right), -1) * weights[:, None]
    if grad:
        chunks.overwrite(logits, wide, lse, weights, z_loss, mine, torch.where(here, weights, 0))
    return sums
