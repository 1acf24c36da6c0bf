"""Random weights of a network: as tensors of a state, or as a folder of weights."""

from pathlib import Path

import torch
from torch import Tensor

from molmo_ds.architecture import MolmoConfig
from molmo_ds.files import Place
from molmo_ds.hub.load import write_weights
from molmo_ds.model.init import initial_parameter
from molmo_ds.weights.source import shapes_of


def random_state(config: MolmoConfig, seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of a network, norms included, so that none can take another's place unnoticed.

    Matrices are small enough for float32 to hold logits to 5e-6; with twice the size rounding alone makes 5e-5.
    """
    source = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes_of(config).items():
        scale = 0.1 if len(shape) > 1 else 0.2
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        state[name] = torch.randn(shape, generator=source) * scale + mean
    return state


def weights_folder(
    out: Place, config: MolmoConfig, state: dict[str, Tensor], tokenizer: Path | None = None
) -> Place:
    """`out`, a folder of weights as conversion writes it."""
    write_weights(out, config, iter(state.items()), tokenizer, len(state))
    return out


def initial_folder(
    out: Place, config: MolmoConfig, tokenizer: Path | None = None, seed: int = 1
) -> Place:
    """`out`, a folder of the weights that a run with this seed begins with."""
    state = {
        name: initial_parameter(config, name, shape, seed)
        for name, shape in shapes_of(config).items()
    }
    return weights_folder(out, config, state, tokenizer)
