"""HOTA of tracks whose points are right or wrong: how well objects are found, and how well they keep their names.

Luiten et al., "HOTA: A Higher Order Metric for Evaluating Multi-Object Tracking", IJCV 2021. A point lies in a mask or
does not, so all thresholds of similarity give the same numbers and one is enough.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from molmo_ds.eval.metrics.pointing import nearest_pairs

EPSILON = sys.float_info.epsilon  # decides between matches that are equally good
Pair = tuple[str, str]  # a true object, a found one


class Detections(NamedTuple):
    """The objects of one frame: `right[i][j]` says whether found point j lies in true object i."""

    wanted: list[str]
    found: list[str]
    right: list[list[bool]]


def hota(frames: Sequence[Detections]) -> dict[str, float]:
    """HOTA, DetA (detections) and AssA (association) of one video; all 1 where nothing is to be found, nor found."""
    wanted = Counter(name for frame in frames for name in frame.wanted)
    found = Counter(name for frame in frames for name in frame.found)
    if not wanted or not found:
        return dict.fromkeys(("HOTA", "DetA", "AssA"), float(not wanted and not found))
    together = _together(frames)
    likeness = {
        (a, b): count / (wanted[a] + found[b] - count + EPSILON)
        for (a, b), count in together.items()
    }
    matches: Counter[Pair] = Counter()
    for frame in frames:
        matches.update(_matches(frame, likeness))
    hits = sum(matches.values())
    detected = hits / (sum(wanted.values()) + sum(found.values()) - hits)
    kept = [count * count / (wanted[a] + found[b] - count) for (a, b), count in matches.items()]
    associated = math.fsum(kept) / max(1, hits)
    return {"HOTA": math.sqrt(detected * associated), "DetA": detected, "AssA": associated}


def _together(frames: Sequence[Detections]) -> dict[Pair, float]:
    """How often a found object may be a true one; where several points lie in several objects, in shares."""
    sums: dict[Pair, float] = {}
    for frame in frames:
        columns = [sum(column) for column in zip(*frame.right)]
        for a, row in zip(frame.wanted, frame.right):
            for b, right, column in zip(frame.found, row, columns):
                if right:
                    sums[a, b] = sums.get((a, b), 0.0) + 1 / (sum(row) + column - 1)
    return sums


def _matches(frame: Detections, likeness: dict[Pair, float]) -> list[Pair]:
    """The pairs of a frame that are right, chosen so that objects keep their names as far as possible."""
    if not frame.wanted or not frame.found:
        return []
    costs = [
        [-likeness.get((a, b), 0.0) * right for b, right in zip(frame.found, row)]
        for a, row in zip(frame.wanted, frame.right)
    ]
    pairs = nearest_pairs(costs)
    return [(frame.wanted[i], frame.found[j]) for i, j in pairs if frame.right[i][j]]
