"""Expert parallelism through DeepSpeed's AutoEP: ranks of a group hold different experts and exchange tokens.

AutoEP puts its own layer in place of `mlp` and calls weights by other names; here they get ours back. A rank holds
experts [r * n / S, (r + 1) * n / S) of S ranks: w1 and w3 are the two halves of `gate_up_proj` [n, 2I, D], w2 is
`down_proj` [n, D, I].
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from molmo_ds.engine import fragments, optim
from molmo_ds.engine.pipeline import PipelineEngine
from molmo_ds.engine.zero import ZeroEngine
from molmo_ds.model.decoder import MoE


class WithExperts:
    """What expert parallelism adds to an engine."""

    def prepare(self, _: torch.optim.Optimizer) -> Any:
        """The DeepSpeed engine; the optimizer is built once AutoEP has replaced the layers."""

        def build(_: Any) -> torch.optim.Optimizer:
            self.groups = split_groups(optim.parameter_groups(self.model, self.config.optim))
            return optim.build_optimizer([dict(group) for group in self.groups], self.config.optim)

        expected = sum(isinstance(module, MoE) for module in self.model.modules())
        engine = super().prepare(build)
        replaced = sum(getattr(module, "_is_autoep_layer", False) for module in self.model.modules())
        assert replaced == expected, f"AutoEP replaced {replaced} of {expected} layers of experts"
        return engine

    shapes = PipelineEngine.shapes  # of the network as one process has it

    def fragments(self) -> Iterator[fragments.Fragment]:
        """What this rank holds, under our names."""
        from deepspeed.utils import groups

        text, size = self.config.model.text, self.ds["expert_parallel"]["autoep_size"]
        first = groups._get_expert_parallel_rank(f"ep_size_{size}") * (text.num_experts // size)
        for piece in super().fragments():
            yield ours(piece, first, text.num_experts)


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


def split_groups(groups: list[dict]) -> list[dict]:
    """Optimizer groups with the experts in groups of their own, as DeepSpeed wants them."""
    out = []
    for group in groups:
        for name in sorted({getattr(p, "group_name", "") for p in group["params"]}):
            chosen = [(p, n) for p, n in zip(group["params"], group["names"]) if getattr(p, "group_name", "") == name]
            params, names = (list(column) for column in zip(*chosen))
            marks = {"moe": True, "name": name} if name else {}
            out.append({**group, "params": params, "names": names, **marks})
    return out
