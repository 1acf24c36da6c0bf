"""First weights, as the reference draws them: a pure function of (seed, name, place), equal under every strategy."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from molmo_ds.architecture import MolmoConfig

BLOCK = 1 << 14  # elements that are drawn from one seed


def initial_parameter(config: MolmoConfig, name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The whole parameter called `name`, float32 on the CPU; see `initial_elements`."""
    size = math.prod(shape)
    return initial_elements(config, name, shape, seed, 0, size).view(tuple(shape))


def initial_elements(
    config: MolmoConfig, name: str, shape: Sequence[int], seed: int, first: int, last: int
) -> Tensor:
    """Elements [first, last) of the flattened parameter called `name`, float32 on the CPU; no others are kept.

    Norms and layer scales 1, biases and padding embedding 0, the rest normal; the ViT's MLP, CLIP's positions, class
    tokens and a linear projector have deviations of their own. The row of <im_patch> is zero where it stays so.
    """
    drawn = torch.empty(last - first, dtype=torch.float32)
    constant = _constant(name)
    if constant is not None:
        drawn.fill_(constant)
    else:
        size = math.prod(shape)
        for number in range(first // BLOCK, -(-last // BLOCK)):
            begin = number * BLOCK
            # the whole block, whatever is kept of it: a normal's numbers come in groups
            block = torch.empty(min(BLOCK, size - begin), dtype=torch.float32)
            _draw(block, config, name, shape, _seed(name, seed, number))
            start, stop = max(first, begin), min(last, begin + len(block))
            drawn[start - first : stop - first] = block[start - begin : stop - begin]
    return cleared_elements(config, name, shape, drawn, first)


def cleared_elements(
    config: MolmoConfig, name: str, shape: Sequence[int], elements: Tensor, first: int
) -> Tensor:
    """Elements of the flattened parameter `name`, from `first` on, with the row of `config.zero_row` at zero."""
    row = row_of(config, name, config.zero_row)
    if row is None:
        return elements
    width = math.prod(shape[1:])
    start = max(row * width - first, 0)
    stop = min((row + 1) * width - first, len(elements))
    if start < stop:
        elements = elements.clone()
        elements[start:stop] = 0
    return elements


def row_of(config: MolmoConfig, name: str, token: int | None) -> int | None:
    """The row of a token in the parameter `name`, None where it is in another."""
    words = config.text.embedding_size
    if token is None or name != ("embed.embedding" if token < words else "embed.new_embedding"):
        return None
    return token if token < words else token - words


def _draw(block: Tensor, config: MolmoConfig, name: str, shape: Sequence[int], seed: int) -> None:
    """Fill some elements of the parameter `name`, which depend on the seed alone."""
    source = torch.Generator().manual_seed(seed)
    vision = config.vision
    if name.endswith("lora_A.weight"):
        block.uniform_(-(shape[1] ** -0.5), shape[1] ** -0.5, generator=source)
    elif name == "connector.projector.weight":
        bound = math.sqrt(6 / (shape[0] + shape[1]))  # Glorot and Bengio's
        block.uniform_(-bound, bound, generator=source)
    elif name.startswith("vision.") and ".mlp." in name:
        nn.init.trunc_normal_(block, 0.0, shape[1] ** -0.5, -2.0, 2.0, generator=source)
    elif name.endswith("class_embedding") or (
        name.endswith("position_embedding") and vision.model_type == "clip"
    ):
        block.normal_(0.0, vision.hidden_size**-0.5, generator=source)
    else:
        part = {"vision": vision, "connector": config.connector}.get(
            name.partition(".")[0], config.text
        )
        block.normal_(0.0, part.initializer_range, generator=source)


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


def _seed(name: str, seed: int, block: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name} {block}".encode()).digest()[:7], "big")
