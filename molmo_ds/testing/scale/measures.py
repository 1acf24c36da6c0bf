"""What start, resume and save cost one rank of many, and all of them: the code of a run, counted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from molmo_ds.engine.filling import Filling
from molmo_ds.engine.save import restore
from molmo_ds.model import init
from molmo_ds.testing.scale import saved
from molmo_ds.testing.scale.counting import Counts, counted, hollow
from molmo_ds.testing.scale.ranks import Network, stand_in
from molmo_ds.weights.checkpoint import Found, open_checkpoint, what_is_wrong
from molmo_ds.weights.first_weights import check_share, first_weights
from molmo_ds.weights.source import Source


def start(network: Network, source: Source | None, stage: int, rank: int, size: int) -> None:
    """The first weights of a rank, from a folder that rank 0 has opened or from nothing."""
    check_share(source, rank, size)
    read = first_weights(network.config, source)
    with stand_in(rank, size) as (world, grid):
        filling = Filling(grid, world)
        for piece in network.pieces(stage, rank, size, state=False):
            filling.fill(
                piece, "weight", lambda first, last, p=piece: read(p.name, p.shape, first, last)
            )
        filling.end()


def opened(path: Path) -> Found:
    """What rank 0 reads of a checkpoint before it is resumed, and sends to the others."""
    found = open_checkpoint(path)
    _ = found.lanes
    return found


def resume(network: Network, found: Found, stage: int, rank: int, size: int) -> None:
    """A rank goes on from a checkpoint that rank 0 has opened."""
    assert what_is_wrong(found.path, rank, size) is None
    with stand_in(rank, size) as (world, grid):
        pieces = network.pieces(stage, rank, size)
        names, optimizer = set(network.shapes), network.config.optim.name
        restore.restore(found, pieces, names, optimizer, Filling(grid, world))


def of_all(folder: Path, size: int, act: Callable[[int], None]) -> Counts:
    """Counts `over` all ranks, whose tensors are hollow."""

    def of_one(rank: int) -> Counts:
        with hollow(), counted(folder) as counts:
            act(rank)
        return counts

    return over(size, of_one)


def over(size: int, of_one: Callable[[int], Any]) -> Any:
    """The sum over all ranks: of the first, the last and, for all between them, of one."""
    total = of_one(0)
    if size > 1:
        total = total + of_one(size - 1)
    if size > 2:
        # not half of the way, which is the end of a block in most tensors
        total = total + of_one(size // 3) * (size - 2)
    return total


def drawn(network: Network, stage: int, rank: int, size: int) -> int:
    """Random numbers that a rank draws for its first weights."""
    sizes: list[int] = []
    count = patch.object(init, "_draw", lambda block, *_: sizes.append(len(block)))
    with count, torch.device("meta"):  # blocks without memory
        start(network, None, stage, rank, size)
    return sum(sizes)


def checkpoint(folder: Path, network: Network, size: int) -> Path:
    """A hollow checkpoint of so many ranks under ZeRO-3."""
    return saved.commit(folder, network, saved.parts(network, size))
