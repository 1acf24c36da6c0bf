"""The numbers that a run starts with: of `init_from`, or a function of seed, name and place."""

from collections.abc import Callable

import torch
from torch import Tensor

from molmo_ds.config import RunConfig
from molmo_ds.model import init
from molmo_ds.weights import checkpoint, checksums
from molmo_ds.weights.blocks import Damaged
from molmo_ds.weights.same_network import check_network
from molmo_ds.weights.source import NO_FILE, Run, Source, open_source

Shape = tuple[int, ...]


def begun_from(config: RunConfig) -> Source | None:
    """The folder of `init_from`, opened; one rank opens it and tells the others, and what they read is verified.

    Raises ValueError for an `init_from` that is no folder of weights, or of another architecture.
    """
    if config.init_from is None:
        return None
    source = open_source(config.init_from, *NO_FILE)
    check_network(config.model, source.config.model, config.init_from)
    if not isinstance(source, Run):
        source.folder.sums = checksums.read_blocks(source.path)
    return source


def check_share(source: Source | None, part: int, parts: int) -> None:
    """ValueError if a file is missing or not as it was written; checks every `parts`-th file from `part` on.

    Of tensors that are verified while they are read the sizes alone; folders that older releases wrote are read for it.
    """
    if isinstance(source, Run):
        if wrong := checkpoint.what_is_wrong(source.path, part, parts):
            raise Damaged(source.path, wrong)
    elif source is not None:
        checksums.check(source.path, part, parts, later=source.folder.sums)


def first_weights(
    config: RunConfig, source: Source | None = None
) -> Callable[[str, Shape, int, int], Tensor]:
    """(name, shape, first, last) -> elements [first, last) of the flattened tensor, of which no more is read or drawn.

    Args:
        source: what `begun_from` opened, by default here.
    """
    source = source or begun_from(config)

    def draw(name: str, shape: Shape, first: int, last: int) -> Tensor:
        return init.initial_elements(config.model, name, shape, config.seed, first, last)

    if source is None:
        return draw

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
        elements = source.elements(name, first, last)
        return init.cleared_elements(config.model, name, shape, elements, first)

    return look_up
