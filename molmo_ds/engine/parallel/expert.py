"""Expert parallelism through DeepSpeed's AutoEP: ranks of a group hold different experts and exchange tokens.

AutoEP puts its own layer in place of `mlp` and calls weights by other names; here they get ours back. A rank holds
experts [r * n / S, (r + 1) * n / S) of S ranks: w1 and w3 are the two halves of `gate_up_proj` [n, 2I, D], w2 is
`down_proj` [n, D, I].
"""

import math
from dataclasses import replace
from typing import Any

from torch import nn

from molmo_ds.engine import deepspeed_0_19
from molmo_ds.engine.fragments import Fragment
from molmo_ds.engine.parallel.part import Part
from molmo_ds.model.decoder import MoE


class Experts(Part):
    """Spread experts under ZeRO 2 or 3: of a whole network, of a stage, of ranks that share a decoder or a sequence."""

    regroups = True

    def transform(self, model: nn.Module) -> None:
        """Count the layers that AutoEP has to replace."""
        self.expected = sum(isinstance(module, MoE) for module in model.modules())
        deepspeed_0_19.allow_frozen_experts()
        # of a pipeline's stage; AutoEP would miss the pattern and raise on that rank only
        if not self.expected:
            self.ds["expert_parallel"]["moe_layer_pattern"] = None

    def settle(self, engine: Any, model: nn.Module) -> None:
        """AutoEP must have replaced every layer of experts; its groups become axes."""
        replaced = deepspeed_0_19.expert_layers(model)
        assert replaced == self.expected, (
            f"AutoEP replaced {replaced} of {self.expected} layers of experts"
        )
        spread, replicated = deepspeed_0_19.expert_groups(self.strategy.experts)
        self.grid.add("expert", spread)
        self.grid.add("expert_data", replicated)

    def marks(self, name: str, parameter: nn.Parameter) -> dict[str, Any]:
        """Experts have optimizer groups of their own, as DeepSpeed wants them."""
        group = deepspeed_0_19.group_of_experts(parameter)
        return {} if group is None else {"moe": True, "name": group, "copies": ()}

    def rename(self, piece: Fragment) -> Fragment:
        """A piece under our names; other ranks that hold the same experts may hold it whole."""
        experts = self.config.model.text.num_experts
        first = self.grid.place("expert") * (experts // self.strategy.experts)
        piece = ours(piece, first, experts)
        if piece.of_experts and piece.copies:
            return replace(piece, copies=("expert_data",))
        return piece


def ours(piece: Fragment, first: int, experts: int) -> Fragment:
    """AutoEP's piece under the name and at the place it has in Molmo; `first` is the first expert of this rank."""
    prefix, _, leaf = piece.name.rpartition(".")
    if prefix.endswith(".mlp.router.gate"):
        return replace(piece, name=piece.name.replace(".router.gate.", ".gate."))
    if not prefix.endswith(".mlp.experts"):
        return piece
    block = math.prod(piece.shape[1:])
    if leaf == "w2":
        shape = (experts, *piece.shape[1:])
        start = first * block + piece.start
        return replace(piece, name=f"{prefix}.down_proj", shape=shape, start=start)
    expert, phase = divmod(piece.start, block)
    start = ((first + expert) * 2 + (leaf == "w3")) * block + phase
    shape = experts, 2 * piece.shape[1], piece.shape[2]
    return replace(
        piece,
        name=f"{prefix}.gate_up_proj",
        shape=shape,
        start=start,
        stride=(block, 2 * block, phase),
    )
