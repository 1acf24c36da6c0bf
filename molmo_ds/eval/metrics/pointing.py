"""Score of points named in a text, with the reference's reading of them (olmo/util.py, olmo/eval/evaluators.py)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from scipy.optimize import linear_sum_assignment

Point = tuple[float, float]
Box = Sequence[float]  # left, top, right, bottom in pixels; right and bottom do not belong to it

_CLICK = re.compile(r"Click\(([0-9]+\.[0-9]), ?([0-9]+\.[0-9])\)")
_PLAIN = re.compile(r"\(([0-9]+\.[0-9]),? ?([0-9]+\.[0-9])\)")
_TAG = re.compile(r'x\d*="\s*([0-9]+(?:\.[0-9]+)?)"\s+y\d*="\s*([0-9]+(?:\.[0-9]+)?)"')
_SHORT = re.compile(r"(?:\d+|p)\s*=\s*([0-9]{3})\s*,\s*([0-9]{3})")  # per mille
# what a text may consist of wholly: pairs in brackets, each with at most one line break, or one tag of four kinds
_NUMBER = r"\d+(?:\.\d+)?"
_XY = rf'="\s*{_NUMBER}"'
_DIGITS = r"=\s*\d{3}\s*,\s*\d{3}\s+"
_FORMATS = (
    rf"(?:\(\s*-?{_NUMBER}\s*,\s*-?{_NUMBER}\s*\)\n?)+",
    rf'<point\s+x{_XY}\s+y{_XY}\s+alt=".*?">.*?</point>',
    rf'<points\s+(?:x\d+{_XY}\s+y\d+{_XY}\s+)+alt=".*?">.*?</points>',
    rf'<point\s+p{_DIGITS}alt=".*?">.*?</point>',
    rf'<points\s+(?:\d+{_DIGITS})+alt=".*?">.*?</points>',
)
_FORMAT = re.compile("|".join(_FORMATS), re.DOTALL)


def extract_points(text: str, width: float, height: float) -> list[Point]:
    """Every point of the text in pixels of a width x height picture; beyond 100 % it is none."""
    out = []
    for pattern, whole in ((_CLICK, 100), (_PLAIN, 100), (_TAG, 100), (_SHORT, 1000)):
        for x, y in pattern.findall(text):
            x, y = float(x) * 100 / whole, float(y) * 100 / whole
            if max(x, y) <= 100:
                out.append((x / 100 * width, y / 100 * height))
    return out


def pointing_scores(
    text: str, points: Sequence[Point], boxes: Sequence[Box], size: tuple[int, int]
) -> dict[str, float]:
    """precision, recall and f1 of the points in `text` against `points`, pixels of a picture of `size` (width, height).

    Points are paired with the wanted ones so that the distances' sum is least; a pair counts when the rounded point
    lies in the wanted one's box. Where nothing is to be found, everything is 1 if no point is given, else 0. A text
    that is not wholly in a format of points scores 0.

    Raises ValueError where there is not one box per point, or a box holds no pixel of the picture.
    """
    if len(points) != len(boxes):
        raise ValueError(f"There are {len(points)} points and {len(boxes)} boxes; give one box per point.")
    for box in boxes:
        _check(box, size)
    given = extract_points(text, *size)
    if not points:
        return dict.fromkeys(("precision", "recall", "f1"), float(not given))
    hits = 0
    if given and in_format(text):
        distances = [[(a - c) ** 2 + (b - d) ** 2 for c, d in points] for a, b in given]
        pairs = nearest_pairs([[value**0.5 for value in row] for row in distances])
        hits = sum(_inside(given[i], boxes[j], size) for i, j in pairs)
    precision, recall = hits / max(len(given), 1), hits / len(points)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
    }


def in_format(text: str) -> bool:
    """Whether a text is points and nothing else: one tag, or coordinates in brackets."""
    return _FORMAT.fullmatch(text.strip()) is not None


def _check(box: Box, size: tuple[int, int]) -> None:
    numbers = isinstance(box, list | tuple) and len(box) == 4
    if not numbers or not all(isinstance(n, int | float) and math.isfinite(n) for n in box):
        raise ValueError(f"A box is {box!r}; it is left, top, right and bottom in pixels.")
    spans = ((box[0], box[2], size[0]), (box[1], box[3], size[1]))
    for first, end, length in spans:
        pixel = max(math.ceil(first), 0)
        if pixel >= min(end, length):
            raise ValueError(f"The box {list(box)} holds no pixel of a picture of {size[0]} x {size[1]}.")


def _inside(point: Point, box: Box, size: tuple[int, int]) -> bool:
    x = round(point[0])
    y = round(point[1])
    return box[0] <= x < min(box[2], size[0]) and box[1] <= y < min(box[3], size[1])


def nearest_pairs(costs: list[list[float]]) -> list[tuple[int, int]]:
    """(row, column) pairs of least total cost, each row and column at most once."""
    rows, columns = linear_sum_assignment(costs)
    return list(zip(rows.tolist(), columns.tolist()))
