"""The share of the decoder that each rank of a tensor group holds, and the sums that make the shares a whole.

Shapes: S ranks of a group, H * d the width of all queries or keys.
"""

import re
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from molmo_ds.architecture import MolmoConfig, TextConfig
from molmo_ds.model.decoder import Attention, Norm
from molmo_ds.ops.rms_norm import rms_norm

IN = r"layers\.\d+\.(self_attn\.[qkv]|mlp\.(gate|up))_proj"
OUT = r"layers\.\d+\.(self_attn\.o|mlp\.down)_proj"
NORMS = re.compile(r"layers\.\d+\.self_attn\.[qk]_norm\.weight")
COLUMNS = re.compile(rf"{NORMS.pattern}|{IN}(\.lora_B)?\.(weight|bias)")
ROWS = re.compile(rf"{OUT}(\.lora_A)?\.weight")


def in_columns(name: str, text: TextConfig) -> bool:
    """Whether ranks of a group hold different rows of a weight [out, in], which are columns of its product.

    A norm of each head has one weight for all heads, which every rank holds.
    """
    of_heads = text.qk_norm_per_head and NORMS.fullmatch(name)
    return bool(COLUMNS.fullmatch(name)) and not of_heads


def in_rows(name: str) -> bool:
    """Whether ranks of a group hold different columns of a weight [out, in]."""
    return bool(ROWS.fullmatch(name))


def splits(name: str, text: TextConfig) -> bool:
    """Whether ranks of a group hold different parts of a parameter."""
    return in_columns(name, text) or in_rows(name)


def shard(config: MolmoConfig, shards: int) -> MolmoConfig:
    """The network of which one rank holds a share of the decoder; the rest keeps its size."""
    text = config.text
    heads = text.num_attention_heads // shards
    keys = text.num_key_value_heads // shards
    width = text.head_width
    inner = text.intermediate_size if text.num_experts else text.intermediate_size // shards
    small = replace(
        text,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=width,
        intermediate_size=inner,
    )
    projector = config.connector.intermediate_size or text.intermediate_size
    return replace(
        config, text=small, connector=replace(config.connector, intermediate_size=projector)
    )


class GroupNorm(nn.Module):
    """A norm of queries or keys whose heads are spread over a group of ranks."""

    def __init__(self, norm: Norm, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.eps
        self.group = group


class SharedNorm(GroupNorm):
    """RMSNorm over a width of which each rank of a group holds a part."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., H * d / S] -> the same; the mean of squares is that of all H * d."""
        wide = x.float()
        squares = Take.apply(
            Add.apply(wide.square().mean(-1, keepdim=True), self.group), self.group
        )
        out = wide * torch.rsqrt(squares / dist.get_world_size(self.group) + self.eps)
        return self.weight * out.to(x.dtype)


class HeadNorm(GroupNorm):
    """RMSNorm of each head by a weight that all ranks of a group hold; its gradient is the sum over their heads."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., H / S, d] -> the same."""
        return rms_norm(x, Take.apply(self.weight, self.group), self.eps)


def share_norms(attention: Attention, group: dist.ProcessGroup) -> None:
    """Make the norms of q and k those of the whole attention."""
    if attention.q_norm is None:
        return
    kind = HeadNorm if attention.per_head else SharedNorm
    attention.q_norm = kind(attention.q_norm, group)
    attention.k_norm = kind(attention.k_norm, group)


class Take(torch.autograd.Function):
    """The input of all ranks of a group; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        """x itself."""
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The sum over the group."""
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class Add(torch.autograd.Function):
    """The sum over a group; each rank gets the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        """The sum."""
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient itself."""
        return gradient, None
