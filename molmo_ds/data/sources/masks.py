"""Regions of pixels in the forms in which data sets publish them, as the runs that a score reads.

A mask is {height, width, runs}: lengths of runs of pixels outside, inside, outside, ... line by line, or with
`by_columns` column by column, as COCO's run lengths are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

FIRST = 48  # character of the digit 0 of COCO's texts
MORE = 32  # in a digit: another one follows
SIGN = 16  # in the last digit: the number is negative


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    """A mask of truth values [height, width]."""
    flat = np.concatenate([[False], mask.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"height": mask.shape[0], "width": mask.shape[1], "runs": runs.tolist()}


def runs_of_coco(published: Mapping[str, Any]) -> dict[str, Any]:
    """A mask as COCO's tools write it, {size: [height, width], counts}: a list, or a text of their own digits.

    ValueError where its runs do not add up to its pixels.
    """
    height, width = (int(size) for size in published["size"])
    counts = published["counts"]
    runs = list(counts) if isinstance(counts, list) else _unpacked(counts)
    if sum(runs) != height * width or any(run < 0 for run in runs):
        raise ValueError(f"The runs of a mask of {width} x {height} do not add up to its pixels.")
    return {"height": height, "width": width, "runs": runs, "by_columns": True}


def _unpacked(text: str | bytes) -> list[int]:
    """Numbers of digits of five bits, the lowest first; from the fourth on each is a difference to the last but one."""
    digits = text.encode() if isinstance(text, str) else text
    runs: list[int] = []
    number = 0
    place = 0
    for letter in digits:
        digit = letter - FIRST
        number |= (digit & (MORE - 1)) << place
        place += 5
        if digit & MORE:
            continue
        if digit & SIGN:
            number -= 1 << place
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = 0
        place = 0
    return runs
