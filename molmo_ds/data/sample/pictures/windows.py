"""Windows of patches that are pooled into one token each: numbers of patches, -1 where there is none.

A patch's number is crop * P + place, counted over the crops of one sample; P = patches of a crop.
"""

from functools import lru_cache

import numpy as np


def pool(grid: np.ndarray, size: int, centred: bool = True) -> np.ndarray:
    """Numbers of patches [rows, columns] -> windows [ceil(rows / size), ceil(columns / size), size * size].

    A side that `size` does not divide lacks patches at both ends, half of them (rounded down) before and the others
    after; without `centred` all of them are missing after the last.
    """
    missing = [_missing(side, size, centred) for side in grid.shape]
    padded = np.pad(grid, missing, constant_values=-1)
    rows = padded.shape[0] // size
    columns = padded.shape[1] // size
    cut = padded.reshape(rows, size, columns, size)
    cut = cut.transpose(0, 2, 1, 3)
    return cut.reshape(rows, columns, size * size)


def _missing(side: int, size: int, centred: bool) -> tuple[int, int]:
    """Patches that windows lack before and after a side."""
    lacking = -side % size
    before = lacking // 2 if centred else 0
    return before, lacking - before


def single(side: int) -> np.ndarray:
    """The patches of crop 0, int64 [side, side]."""
    return np.arange(side * side).reshape(side, side)


@lru_cache(maxsize=256)
def joined(tiling: tuple[int, int], side: int, margins: tuple[int, int]) -> np.ndarray:
    """The patches of overlapping crops 1, 2, ... as one grid, what two crops share taken from one of them.

    Args:
        tiling: rows and columns of crops.
        side: patches along a crop.
        margins: patches cut at the left and at the right of a crop, and so above and below, where it has a neighbour.
    """
    rows, columns = tiling
    parts = []
    for row in range(rows):
        down = _kept(row, rows, side, margins)
        line = []
        for column in range(columns):
            across = _kept(column, columns, side, margins)
            number = 1 + row * columns + column
            crop = single(side) + number * side * side
            line.append(crop[down, across])
        parts.append(line)
    return np.block(parts)


def _kept(place: int, count: int, side: int, margins: tuple[int, int]) -> slice:
    left, right = margins
    first = left if place > 0 else 0
    cut = right if place < count - 1 else 0
    return slice(first, side - cut)
