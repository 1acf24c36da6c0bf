"""Sequence parallelism over any ZeRO stage: a group of ranks shares each sequence (Ulysses) and its crops.

Shapes: S ranks of a group, B sequences, T tokens, H heads, G key-value heads, d head width, M windows.
Outside attention a rank holds T / S tokens; inside it holds all tokens of H / S heads, so the tree mask stays whole.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from molmo_ds.batch import PER_TOKEN, Batch, Carry, learnt_rows_of, shifted
from molmo_ds.engine.parallel.part import Part
from molmo_ds.engine.shares.picture_shares import Deal
from molmo_ds.model.decoder import Core, DecoderLayer
from molmo_ds.model.molmo import Molmo
from molmo_ds.ops.tree_attention import AttentionPlan, tree_attention

Group = dist.ProcessGroup


class Sequence(Part):
    """Neighbours share each sequence; they read the same samples."""

    def transform(self, model: Molmo) -> None:
        """Gather features before the embedding, and exchange tokens for heads in every decoder layer."""
        group = self.grid.group("sequence")
        model.add_module("gather_features", GatherFeatures(group))
        model.rows.insert(model.rows.index("embed"), "gather_features")
        for layer in model.modules():
            if isinstance(layer, DecoderLayer):
                layer.self_attn.core = Ulysses(group)

    def local(self, batch: Batch) -> Batch:
        """This rank's tokens and crops of a batch that all ranks of the group hold; see `part`."""
        return part(batch, self.grid.place("sequence"), self.grid.size("sequence"))


def part(batch: Batch, place: int, size: int) -> Batch:
    """The share of rank `place` of `size`: tokens [place * t, (place + 1) * t), t = T / size, and some whole pictures.

    `image_positions` still point into the whole sequences; `GatherFeatures` makes them local. A rank without a picture
    gets a blank crop, so that every rank runs the vision tower.
    """
    length = batch.input_ids.shape[1]
    share = -(-length // size)

    def tokens(x: Tensor) -> Tensor:
        padded = F.pad(x, (0, share * size - length))
        return padded[:, place * share : (place + 1) * share].contiguous()

    rows = batch.image_positions // length
    in_padded = shifted(batch.image_positions, rows * (share * size - length))
    pictures = Deal(batch.replace(image_positions=in_padded), size).share(place)
    texts = {name: tokens(getattr(batch, name)) for name in PER_TOKEN}
    return Batch(**texts, **pictures, learnt_rows=learnt_rows_of(texts["loss_weights"]))


def gathered(x: Tensor, group: Group) -> list[Tensor]:
    """The tensors of all ranks of a group, which have one shape, in the order of the ranks."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group=group)
    return parts


class GatherFeatures(nn.Module):
    """Gather the features of the group's windows; each rank gets back the summed gradient of its own."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Carry) -> Carry:
        """image_features and image_positions of this rank's windows -> of all, positions in this rank's tokens."""
        size = dist.get_world_size(self.group)
        place = dist.get_rank(self.group)
        positions = torch.cat(gathered(x.image_positions, self.group))
        share = x.input_ids.shape[1]
        rows = positions.clamp(min=0) // (share * size)
        columns = positions.clamp(min=0) % (share * size)
        here = (positions >= 0) & (columns // share == place)
        local = torch.where(here, rows * share + columns % share, -1)
        features = AllGather.apply(x.image_features, self.group)
        return x._replace(image_positions=local, image_features=features)


class Ulysses(Core):
    """Exchanges tokens for heads around the attention between projections."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def plan(self, x: Carry, dtype: torch.dtype) -> AttentionPlan:
        """The plan of the whole sequences, from this rank's ids int [B, T / S]."""
        planned = {name: getattr(x, name) for name in self.planned}
        whole = {name: self.whole(ids) for name, ids in planned.items() if ids is not None}
        return super().plan(x._replace(**whole), dtype)

    def whole(self, ids: Tensor) -> Tensor:
        """[B, T / S] -> [B, T]."""
        return torch.cat(gathered(ids, self.group), 1)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, plan: Any, dropout_p: float) -> Tensor:
        """q [B, H, T / S, d], k and v [B, G, T / S, d] -> [B, H, T / S, d]."""
        size = dist.get_world_size(self.group)
        # fewer key-value heads than ranks: each is repeated until every rank has one
        if k.shape[1] % size:
            repeats = size // k.shape[1]
            k = k.repeat_interleave(repeats, 1)
            v = v.repeat_interleave(repeats, 1)
        q = AllToAll.apply(q.contiguous(), 1, 2, self.group)
        k = AllToAll.apply(k.contiguous(), 1, 2, self.group)
        v = AllToAll.apply(v.contiguous(), 1, 2, self.group)
        out = tree_attention(q, k, v, plan, dropout_p)
        return AllToAll.apply(out.contiguous(), 2, 1, self.group)


class AllToAll(torch.autograd.Function):
    """Cut along one dimension, exchange, join along another; with the dimensions swapped it is its own inverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cut: int, join: int, group: Group) -> Tensor:
        """[.., S * a, .., b, ..] -> [.., a, .., S * b, ..] for a, b at `cut`, `join`."""
        ctx.arguments = join, cut, group
        given = torch.stack(x.chunk(dist.get_world_size(group), cut))
        taken = torch.empty_like(given)
        dist.all_to_all_single(taken, given, group=group)
        return torch.cat(taken.unbind(), join)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        """The exchange the other way."""
        return AllToAll.apply(gradient.contiguous(), *ctx.arguments), None, None, None


class AllGather(torch.autograd.Function):
    """[M, D] of each rank -> [S * M, D]; the gradient of a row is the sum over the ranks that used it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        """Every rank's rows, in the order of the ranks."""
        ctx.group = group
        ctx.rows = len(x)
        return torch.cat(gathered(x, group))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Reduce-scatter, written as an all-reduce because gloo has nothing better."""
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient, group=ctx.group)
        place = dist.get_rank(ctx.group)
        return gradient[place * ctx.rows : (place + 1) * ctx.rows], None
