"""torch.compile of ViT blocks and decoder layers: one compile for all layers of a kind.

What is compiled is the class's method with the layer as an argument, so that equal layers share it: `run` of the whole
layer, or under ZeRO-3 its attention and MLP one by one, each gathered as one (a "leaf" module): DeepSpeed's hooks
inside a graph would cut it at every projection, and its leaf modules take tensors, not tuples of them. Decoder shapes
are static, since packing fixes B and T. The number of crops N is marked as dynamic; torch would make a second version
for N = 1, so a lone crop runs twice and the copy is dropped. Training and evaluation are two compiles.
Collectives inside attention (sequence and tensor parallelism, adapters) are part of the graph.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from molmo_ds.model.decoder import DecoderLayer, MoE
from molmo_ds.model.vision import VisionLayer

BACKEND = "inductor"


def compile_layers(model: nn.Module, mode: str = "default") -> None:
    """Compile every ViT block and decoder layer below `model`; parameters keep their names.

    Args:
        mode: torch.compile's. Those with CUDA graphs are left out: packing's number of crops changes with every batch.
    """
    from deepspeed.utils import set_z3_leaf_module

    from molmo_ds.engine import deepspeed_0_19

    split = any(deepspeed_0_19.is_split(parameter) for parameter in model.parameters())
    made: dict[type, Callable[..., Tensor]] = {}
    for layer in [
        module for module in model.modules() if isinstance(module, (DecoderLayer, VisionLayer))
    ]:
        for part in (layer.self_attn, layer.mlp) if split else (layer,):
            kind = type(part)
            name = "forward" if split else "run"
            if kind is MoE:  # AutoEP has a way of its own with these
                continue
            if kind not in made:
                run = torch.compile(
                    getattr(kind, name), backend=BACKEND, mode=None if mode == "default" else mode
                )
                made[kind] = _many_crops(run) if isinstance(layer, VisionLayer) else run
            setattr(part, name, types.MethodType(made[kind], part))
            if split:
                set_z3_leaf_module(part, True)


def _many_crops(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def padded(layer: Any, hidden: Tensor) -> Tensor:
        crops = len(hidden)
        if crops == 1:
            hidden = hidden.repeat(2, 1, 1)
        torch._dynamo.mark_dynamic(hidden, 0)
        return run(layer, hidden)[:crops]

    return padded
