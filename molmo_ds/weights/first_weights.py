"""The numbers that a run starts with: of `init_from`, or a function of seed and name."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from molmo_ds.config import RunConfig
from molmo_ds.model import init
from molmo_ds.weights.source import open_source

Shape = tuple[int, ...]


def first_weights(config: RunConfig) -> Callable[[str, Shape, int, int], Tensor]:
    """(name, shape, first, last) -> elements [first, last) of the flattened tensor, of which no more is read.

    Raises ValueError for an `init_from` that is no folder of weights, or of another architecture.
    """

    def draw(name: str, shape: Shape, first: int, last: int) -> Tensor:
        whole = init.initial_parameter(config.model, name, shape, config.seed)
        return whole.reshape(-1)[first:last]

    if config.init_from is None:
        return draw
    source = open_source(config.init_from)

    def look_up(name: str, shape: Shape, first: int, last: int) -> Tensor:
        if ".lora_" in name:
            return draw(name, shape, first, last)
        stored = source.shapes.get(name)
        if stored is None:
            raise ValueError(
                f"init_from={config.init_from} has no {name}; it belongs to another architecture."
            )
        if stored != list(shape):
            raise ValueError(
                f"init_from={config.init_from}: {name} has shape {tuple(stored)}, and the model has {shape}."
            )
        if first == last:
            return torch.empty(0)
        row = math.prod(shape[1:])
        begin = first // row
        rows = source.rows(name, begin, -(-last // row))
        rows = init.cleared(config.model, name, rows, begin).reshape(-1)
        return rows[first - begin * row : last - begin * row]

    return look_up
