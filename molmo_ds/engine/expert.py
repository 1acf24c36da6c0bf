"""Expert parallelism through DeepSpeed's AutoEP: ranks of a group hold different experts and exchange tokens.

AutoEP puts its own layer in place of `mlp` and calls weights by other names; here they get ours back. A rank holds
experts [r * n / S, (r + 1) * n / S) of S ranks: w1 and w3 are the two halves of `gate_up_proj` [n, 2I, D], w2 is
`down_proj` [n, D, I].
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from molmo_ds.engine import deepspeed_0_19, fragments, optim
from molmo_ds.engine.pipeline import PipelineEngine
from molmo_ds.engine.zero import ZeroEngine
from molmo_ds.model.decoder import MoE


class Regrouped:
    """An engine whose optimizer is built after DeepSpeed has replaced layers, in groups finer than the components."""

    def prepare(self, _: torch.optim.Optimizer) -> Any:
        """The DeepSpeed engine, with the optimizer's groups in `groups`."""

        def build(_: Any) -> torch.optim.Optimizer:
            self.order.watch(self.model.named_parameters())  # DeepSpeed has replaced some
            self.groups = split_groups(optim.parameter_groups(self.model, self.config.optim), self.marks)
            return optim.build_optimizer([dict(group) for group in self.groups], self.config.optim)

        return super().prepare(build)

    def marks(self, parameter: nn.Parameter, name: str) -> dict[str, Any]:
        """What the group of a parameter carries beside its component's settings."""
        return {}

    shapes = PipelineEngine.shapes  # of the network as one process has it


class WithExperts(Regrouped):
    """What expert parallelism adds to an engine."""

    def prepare(self, optimizer: torch.optim.Optimizer) -> Any:
        """The DeepSpeed engine; AutoEP must have replaced every layer of experts."""
        expected = sum(isinstance(module, MoE) for module in self.model.modules())
        deepspeed_0_19.allow_frozen_experts()
        if not expected:  # of a pipeline's stage; AutoEP would miss the pattern and raise on that rank only
            self.ds["expert_parallel"]["moe_layer_pattern"] = None
        engine = super().prepare(optimizer)
        replaced = deepspeed_0_19.expert_layers(self.model)
        assert replaced == expected, f"AutoEP replaced {replaced} of {expected} layers of experts"
        return engine

    def marks(self, parameter: nn.Parameter, name: str) -> dict[str, Any]:
        """Experts stand in groups of their own, as DeepSpeed wants them."""
        group = deepspeed_0_19.group_of_experts(parameter)
        moe = {} if group is None else {"moe": True, "name": group}
        return super().marks(parameter, name) | moe

    def fragments(self, changed: bool = False) -> Iterator[fragments.Fragment]:
        """What this rank holds, under our names."""
        text, size = self.config.model.text, self.ds["expert_parallel"]["autoep_size"]
        spread, alike = deepspeed_0_19.expert_groups(size)
        first = dist.get_rank(spread) * (text.num_experts // size)
        copy = dist.get_rank(alike) > 0
        for piece in super().fragments(changed):
            piece = ours(piece, first, text.num_experts)
            if ".mlp.experts." in piece.name:
                yield replace(piece, whole=piece.whole and copy)
            else:
                yield replace(piece, whole=piece.whole and not self.keeper)


class Direct(ZeroEngine):
    """Without Accelerate, which takes no function that builds an optimizer."""

    def prepare(self, optimizer: Any) -> Any:
        """The DeepSpeed engine."""
        import deepspeed

        return deepspeed.initialize(model=self.model, optimizer=optimizer, config=self.ds, dist_init_required=False)[0]


class ExpertEngine(WithExperts, Direct):
    """Expert parallelism over ZeRO 2 or 3."""


class ExpertPipelineEngine(WithExperts, PipelineEngine):
    """Expert parallelism inside the stages of a pipeline, with ZeRO 1."""


def ours(piece: fragments.Fragment, first: int, experts: int) -> fragments.Fragment:
    """AutoEP's piece under the name and at the place it has in Molmo; `first` is the first expert of this rank."""
    prefix, _, leaf = piece.name.rpartition(".")
    if prefix.endswith(".mlp.router.gate"):
        return replace(piece, name=piece.name.replace(".router.gate.", ".gate."))
    if not prefix.endswith(".mlp.experts"):
        return piece
    block = math.prod(piece.shape[1:])
    if leaf == "w2":
        shape, start = (experts, *piece.shape[1:]), first * block + piece.start
        return replace(piece, name=f"{prefix}.down_proj", shape=shape, start=start)
    expert, phase = divmod(piece.start, block)
    start = ((first + expert) * 2 + (leaf == "w3")) * block + phase
    shape = experts, 2 * piece.shape[1], piece.shape[2]
    return replace(piece, name=f"{prefix}.gate_up_proj", shape=shape, start=start, stride=(block, 2 * block, phase))


def split_groups(groups: list[dict], marks: Callable[[nn.Parameter, str], dict[str, Any]]) -> list[dict]:
    """The optimizer's groups, cut by `marks`, which their parts carry."""
    out = []
    for group in groups:
        parts: dict[tuple, dict] = {}
        for parameter, name in zip(group["params"], group["names"]):
            marked = marks(parameter, name)
            part = parts.setdefault(tuple(marked.items()), {**group, **marked, "params": [], "names": []})
            part["params"].append(parameter)
            part["names"].append(name)
        out += parts.values()
    return out
