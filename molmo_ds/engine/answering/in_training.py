"""A network in training as replicas that answer: over as few ranks as its weights need, filled tensor by tensor.

Training may hold the weights in any way; the engine sends each tensor whole, and every rank keeps the part that it has
of its replica. So no rank needs memory for more than its part and one tensor.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from molmo_ds.architecture import MolmoConfig
from molmo_ds.engine import Engine
from molmo_ds.engine.answering.layout import refuse, stage_rows
from molmo_ds.engine.grid import Grid
from molmo_ds.engine.strategy import Limits, Strategy
from molmo_ds.model.flops import cached
from molmo_ds.weights.slices import Cut

EMBEDDING = "embed.embedding"  # which is the head as well where both are tied
IN_TRANSIT = 4  # bytes of a number of the tensor that is on its way


class Weights:
    """The weights of an engine as `layout.Fill`; every rank calls it, and reads it to its end, at the same time.

    A second round, which some ranks ask for, gives them their part of a tied embedding.
    """

    def __init__(self, engine: Engine, config: MolmoConfig) -> None:
        self.engine = engine
        self.tied = config.text.tie_word_embeddings
        self.first = True
        self.embedding: Tensor | None = None

    def __call__(self, wanted: dict[str, Cut]) -> Iterable[tuple[str, Tensor]]:
        """See `layout.Fill`."""
        if not self.first:
            yield from ((name, self.embedding[cut]) for name, cut in wanted.items())
            return
        self.first = False
        for name, value in self.engine.full_state():
            if self.tied and name == EMBEDDING:
                self.embedding = value
            if name in wanted:
                yield name, value[wanted[name]]


def fitting(config: MolmoConfig, ranks: int, free: int, limits: Limits, itemsize: int) -> Strategy:
    """How `ranks` ranks, each with `free` bytes, make up replicas of as few ranks as possible.

    Raises ValueError where even all ranks together cannot hold one.

    Args:
        itemsize: bytes of a weight.
    """
    needed = None
    for layout in layouts(config, ranks, limits):
        size = bytes_of(config, layout, ranks, itemsize)
        if size <= free:
            return layout
        needed = size if needed is None else min(needed, size)
    raise ValueError(
        f"needs {needed / 1e9:.1f} GB on each of {ranks} ranks for the weights that answer, and"
        f" {free / 1e9:.1f} GB are free"
    )


def layouts(config: MolmoConfig, ranks: int, limits: Limits) -> Iterator[Strategy]:
    """What can be laid over `ranks` ranks, the smallest replicas first, each cut into as few stages as possible."""
    for shared in (size for size in range(1, ranks + 1) if ranks % size == 0):
        for tensor in (size for size in range(shared, 0, -1) if shared % size == 0):
            stages = shared // tensor
            slots = -(-limits.slots // stages) * stages
            layout = Strategy(
                path="evaluators",
                ds={},
                engine="inference",
                stages=stages,
                tensor=tensor,
                limits=replace(limits, slots=slots),
            )
            try:
                refuse(config, layout)
            except ValueError:
                continue
            yield layout
            break


def bytes_of(config: MolmoConfig, layout: Strategy, ranks: int, itemsize: int) -> int:
    """What the rank with most of a replica needs: its weights, its cache, and one tensor on its way."""
    axes = layout.axes(ranks)
    held = []
    for stage in range(layout.stages):
        module, _ = stage_rows(config, layout, Grid(axes, stage * ranks // layout.stages))
        held.append(sum(parameter.numel() for parameter in module.parameters()))
    tokens = layout.limits.slots * layout.limits.slot_tokens
    cache = cached(config.text) * tokens // layout.shared
    return itemsize * (max(held) + cache) + IN_TRANSIT * largest(config)


def largest(config: MolmoConfig) -> int:
    """Numbers of the largest tensor."""
    with torch.device("meta"):
        alone = Strategy(path="evaluators", ds={}, engine="inference")
        module: nn.Module = stage_rows(config, alone, Grid({}, 0))[0]
    return max(parameter.numel() for parameter in module.parameters())
