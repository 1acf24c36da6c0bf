"""LoRA: adapters of the linear layers of a component, which alone learn there, and their merging.

peft is not used for training: its wrapper renames each weight it wraps (`q_proj.base_layer.weight`), and checkpoints,
first weights, component rules and released names all go by name. Here the base keeps its name, and its module has
peft's `lora_A` and `lora_B` as well. Experts and their router, the head and the embeddings have no adapter.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from molmo_ds.config import LoraConfig
from molmo_ds.model.linear import Linear
from molmo_ds.model.molmo import component


def adapt(model: nn.Module, lora: LoraConfig, prefix: str = "") -> None:
    """Give every Linear of `lora.components` an adapter; `prefix` is that of the names if `model` is one row."""
    for name, module in list(model.named_modules()):
        router = name.endswith("mlp.gate")  # what AutoEP puts in its place has none
        if (
            isinstance(module, Linear)
            and component(f"{prefix}{name}") in lora.components
            and not router
        ):
            module.adapt(lora.rank, lora.alpha, lora.dropout)


def is_base(name: str, lora: LoraConfig) -> bool:
    """Whether the parameter belongs to an adapted component and is no adapter."""
    return component(name) in lora.components and ".lora_" not in name


def merged(
    names: Iterable[str], read: Callable[[str], Tensor], alpha: float
) -> tuple[list[str], Callable[[str], Tensor]]:
    """The names without adapters, and a reader that adds alpha / rank * B @ A to the weights that have one."""
    names = list(names)
    adapted = {
        name.removesuffix("lora_A.weight") for name in names if name.endswith(".lora_A.weight")
    }

    def whole(name: str) -> Tensor:
        weight = read(name)
        stem = name.removesuffix("weight")
        if name == stem or stem not in adapted:
            return weight
        down, up = (read(f"{stem}lora_{side}.weight").double() for side in "AB")
        return torch.addmm(weight.double(), up, down, alpha=alpha / len(down)).to(weight.dtype)

    return [name for name in names if ".lora_" not in name], whole
