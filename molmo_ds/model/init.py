"""First weights, as the reference draws them, and a pure function of (seed, name): alike on every rank and strategy."""

import hashlib
import math

import torch
from torch import Tensor, nn

from molmo_ds.config import MolmoConfig


def initialise(name: str, tensor: Tensor, config: MolmoConfig, seed: int) -> None:
    """Fill `tensor`, the whole parameter called `name`, in place.

    Norms and layer scales 1, biases and padding embedding 0, the rest normal; the ViT's MLP and a linear projector have
    deviations of their own. Drawn on the CPU in float32, so that a GPU gets the same numbers.
    """
    with torch.no_grad():
        kind = _constant(name)
        if kind is not None:
            tensor.fill_(kind)
            return
        source = torch.Generator().manual_seed(_seed(name, seed))
        drawn = torch.empty(tensor.shape, dtype=torch.float32)
        vision = config.vision
        if name == "connector.projector.weight":
            nn.init.xavier_uniform_(drawn, generator=source)
        elif name.startswith("vision.") and ".mlp." in name:
            nn.init.trunc_normal_(drawn, 0.0, drawn.shape[1] ** -0.5, -2.0, 2.0, generator=source)
        elif name.endswith("class_embedding") or (name.endswith("position_embedding") and vision.model_type == "clip"):
            drawn.normal_(0.0, 1 / math.sqrt(vision.hidden_size), generator=source)
        else:
            component = name.partition(".")[0]
            part = {"vision": vision, "connector": config.connector}.get(component, config.text)
            drawn.normal_(0.0, part.initializer_range, generator=source)
        tensor.copy_(drawn)


def reset_parameters(model: nn.Module, config: MolmoConfig, seed: int) -> None:
    """Initialise every parameter of a whole model (on the meta device: call `to_empty` first)."""
    for name, parameter in model.named_parameters():
        initialise(name, parameter, config, seed)


def _constant(name: str) -> float | None:
    module, _, leaf = name.rpartition(".")
    if leaf == "bias" or leaf == "pad_embed":
        return 0.0
    if "norm" in module.rpartition(".")[2] or leaf.startswith("layer_scale"):
        return 1.0
    return None


def _seed(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")
