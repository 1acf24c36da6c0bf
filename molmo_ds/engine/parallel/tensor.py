"""Tensor parallelism of the decoder: each rank of a group holds some heads and some columns of every MLP.

The shards are built as a smaller decoder, so no rank ever holds the whole; two hooks per branch add the partial sums.
DeepSpeed's AutoTP makes the groups but splits nothing: its layers know no norm over all heads (OLMo2, OLMoE).
Shapes: S ranks of a group, D width, H * d the width of all queries or keys.
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from molmo_ds.architecture import MolmoConfig
from molmo_ds.engine import deepspeed_0_19
from molmo_ds.engine.fragments import Fragment
from molmo_ds.engine.parallel.part import Part
from molmo_ds.engine.shares.tensor_shards import (
    Add,
    Take,
    in_columns,
    in_rows,
    shard,
    share_norms,
    splits,
)
from molmo_ds.model.decoder import DecoderLayer, MoE
from molmo_ds.model.linear import Linear


class Tensors(Part):
    """Neighbours read the same samples and share the decoder; parameters that are not split are replicated."""

    regroups = True

    def shape(self, model: MolmoConfig) -> MolmoConfig:
        """The network with this rank's share of the decoder."""
        return shard(model, self.strategy.tensor)

    def transform(self, model: nn.Module) -> None:
        """Add the partial sums of every branch over the group."""
        group = self.grid.group("tensor")
        model.config = self.config.model
        text = self.config.model.text
        for name, parameter in model.named_parameters():
            parameter.tensor_model_parallel = splits(
                name, text
            )  # AutoEP averages others over the group
        for name, layer in model.named_modules():
            if isinstance(layer, DecoderLayer):
                join(layer, group)
            elif splits(f"{name}.weight", text) and isinstance(layer, Linear) and layer.lora_scale:
                join_adapter(layer, group, in_rows(f"{name}.weight"))

    def settle(self, engine: Any, model: nn.Module) -> None:
        """Switch off AutoTP's comparison of the first batch, since it knows no Batch."""
        deepspeed_0_19.compare_no_inputs(engine)

    def marks(self, name: str, parameter: nn.Parameter) -> dict[str, Any]:
        """Axes along which a parameter is replicated: those of the group, unless its ranks hold different parts."""
        text = self.config.model.text
        spread = splits(name, text) or deepspeed_0_19.group_of_experts(parameter) is not None
        return {"copies": () if spread else ("tensor",)}

    def rename(self, piece: Fragment) -> Fragment:
        """A piece at its place in the whole parameter; one that is not split is replicated in the group."""
        name = piece.name
        shape = piece.shape
        shards = self.strategy.tensor
        place = self.grid.place("tensor")
        if in_columns(name, self.config.model.text):
            start = piece.start + place * math.prod(shape)
            return replace(piece, shape=(shape[0] * shards, *shape[1:]), start=start)
        if in_rows(name):
            row, phase = divmod(piece.start, shape[1])
            start = (row * shards + place) * shape[1] + phase
            stride = (shape[1], shape[1] * shards, phase)
            return replace(piece, shape=(shape[0], shape[1] * shards), start=start, stride=stride)
        if piece.of_experts and self.strategy.experts > 1:
            return piece
        return replace(piece, copies=(*piece.copies, "tensor"))


def join(layer: DecoderLayer, group: dist.ProcessGroup) -> None:
    """Make the layer's output the sum over the group, and its gradients those of the whole layer."""

    def take(module: nn.Module, inputs: tuple) -> tuple:
        return Take.apply(inputs[0], group), *inputs[1:]

    def add(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return Add.apply(output, group)

    for branch in (layer.self_attn, layer.mlp):
        if not isinstance(branch, MoE):
            branch.register_forward_pre_hook(take)
            branch.register_forward_hook(add)
    share_norms(layer.self_attn, group)


def join_adapter(layer: Linear, group: dist.ProcessGroup, rows: bool) -> None:
    """Make the gradients of an adapter those of the whole layer; one of its two matrices is replicated.

    The branch sums its output, and the gradient of its input, over the group: a replicated share of either is divided
    by the group's size first.
    """
    size = dist.get_world_size(group)

    def divide_gradient(module: nn.Module, inputs: tuple) -> tuple:
        return (Scale.apply(inputs[0], 1, 1 / size),)

    def take(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return Take.apply(output, group)

    def add(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return Add.apply(output, group)

    def divide(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return Scale.apply(output, 1 / size, 1)

    if rows:
        layer.lora_A.register_forward_hook(add)
        layer.lora_B.register_forward_hook(divide)
    else:
        layer.lora_A.register_forward_pre_hook(divide_gradient)
        layer.lora_A.register_forward_hook(take)


class Scale(torch.autograd.Function):
    """Multiply by one number, and the gradient by another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        """x times `forward`."""
        ctx.factor = backward
        return x * forward

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient times `backward`."""
        return gradient * ctx.factor, None, None
