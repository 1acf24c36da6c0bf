"""Filling a rank's pieces with numbers: of ranks that need the same ones each reads some and sends them."""

from collections import Counter
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from molmo_ds.engine.fragments import Fragment
from molmo_ds.engine.grid import AXES, Grid
from molmo_ds.engine.launch import World
from molmo_ds.weights.pieces import end_of, stretches

CHUNK = 1 << 24  # elements of a piece that are in memory at once


class Filling:
    """One pass over all pieces; every rank makes it, and `end` says on each of them what went wrong on any."""

    def __init__(self, grid: Grid, world: World) -> None:
        self.grid = grid
        self.world = world
        self.error: Exception | None = None
        self.turns: Counter[tuple[str, ...]] = Counter()

    def fill(self, piece: Fragment, key: str, read: Callable[[int, int], Tensor]) -> None:
        """Fill one tensor of a piece by `read(first, last)`, elements [first, last) of the whole, flat on the CPU.

        A rank that cannot read goes on with zeros: the others wait for what it sends.
        """
        target = piece.tensors[key]
        for begin, end in _regions(piece):
            for first in range(begin, end, CHUNK):
                last = min(first + CHUNK, end)
                numbers = self._numbers(piece, target.dtype, read, first, last)
                for group in stretches(piece.start, piece.size, piece.stride, first, last):
                    size = (group.count, group.length)
                    place = numbers.storage_offset() + group.start - first
                    taken = numbers.as_strided(size, (group.distance, 1), place)
                    target[group.here : group.end].view(size).copy_(taken)

    def end(self) -> None:
        """Raise on every rank what the first of those that could not read was told."""
        if error := self.world.first_said(self.error):
            raise error

    def _numbers(
        self, piece: Fragment, dtype: torch.dtype, read: Callable, first: int, last: int
    ) -> Tensor:
        axes = (*piece.copies, *piece.shares)
        ranks = self.grid.along(*axes) if set(axes) <= set(AXES) else ()
        if len(ranks) <= 1:
            return self._read(read, first, last)
        reader = ranks[self.turns[axes] % len(ranks)]
        self.turns[axes] += 1
        numbers = torch.empty(last - first, dtype=dtype, device=self.world.device)
        if reader == self.world.rank:
            numbers.copy_(self._read(read, first, last))
        dist.broadcast(numbers, reader, group=self.grid.group(*axes))
        return numbers

    def _read(self, read: Callable[[int, int], Tensor], first: int, last: int) -> Tensor:
        try:
            return read(first, last)
        except (ValueError, OSError) as error:
            self.error = self.error or error
            return torch.zeros(last - first)


def _regions(piece: Fragment) -> list[tuple[int, int]]:
    """What is read for a piece: its stretches, or all the rows in which it and its neighbours have columns."""
    if not piece.shares:
        return [(first, first + length) for first, _, length in piece.runs()]
    row = piece.stride[1]
    end = end_of(piece.start, piece.size, piece.stride)
    return [(piece.start // row * row, -(-end // row) * row)]
