"""First weights, as the reference draws them: a pure function of (seed, name), equal under every strategy."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from molmo_ds.architecture import MolmoConfig


def initial_parameter(config: MolmoConfig, name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The whole parameter called `name`, float32 on the CPU.

    Norms and layer scales 1, biases and padding embedding 0, the rest normal; the ViT's MLP, CLIP's positions, class
    tokens and a linear projector have deviations of their own. The row of <im_patch> is zero where it stays so.
    """
    return cleared(config, name, _drawn(config, name, shape, seed))


def cleared(config: MolmoConfig, name: str, rows: Tensor, first: int = 0) -> Tensor:
    """Rows of the parameter `name`, from `first` on, with that of `config.zero_row` at zero."""
    row = row_of(config, name, config.zero_row)
    if row is None or not first <= row < first + len(rows):
        return rows
    rows = rows.clone()
    rows[row - first] = 0
    return rows


def row_of(config: MolmoConfig, name: str, token: int | None) -> int | None:
    """The row of a token in the parameter `name`, None where it is in another."""
    words = config.text.embedding_size
    if token is None or name != ("embed.embedding" if token < words else "embed.new_embedding"):
        return None
    return token if token < words else token - words


def _drawn(config: MolmoConfig, name: str, shape: Sequence[int], seed: int) -> Tensor:
    drawn = torch.empty(tuple(shape), dtype=torch.float32)
    constant = _constant(name)
    if constant is not None:
        return drawn.fill_(constant)
    source = torch.Generator().manual_seed(_seed(name, seed))
    vision = config.vision
    if name.endswith("lora_A.weight"):
        bound = drawn.shape[1] ** -0.5
        return drawn.uniform_(-bound, bound, generator=source)
    if name == "connector.projector.weight":
        return nn.init.xavier_uniform_(drawn, generator=source)
    if name.startswith("vision.") and ".mlp." in name:
        deviation = drawn.shape[1] ** -0.5
        return nn.init.trunc_normal_(drawn, 0.0, deviation, -2.0, 2.0, generator=source)
    of_clip = name.endswith("position_embedding") and vision.model_type == "clip"
    if name.endswith("class_embedding") or of_clip:
        return drawn.normal_(0.0, vision.hidden_size**-0.5, generator=source)
    parts = {"vision": vision, "connector": config.connector}
    part = parts.get(name.partition(".")[0], config.text)
    return drawn.normal_(0.0, part.initializer_range, generator=source)


def reset_parameters(model: nn.Module, config: MolmoConfig, seed: int) -> None:
    """Initialise every parameter of a whole model (on the meta device: call `to_empty` first)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_parameter(config, name, parameter.shape, seed))


def _constant(name: str) -> float | None:
    module, _, leaf = name.rpartition(".")
    if leaf in ("bias", "pad_embed") or module.endswith("lora_B"):
        return 0.0
    if "norm" in module.rpartition(".")[2] or leaf.startswith("layer_scale"):
        return 1.0
    return None


def _seed(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")
