"""Score of points named in a text, against points and the regions in which they count.

Source: allenai/molmo 793fa38, olmo/util.py and olmo/eval/evaluators.py (PointingEval), which wants points and nothing
else. allenai/molmo2 f3cb108 counts points wherever they stand in a reply: so are points in its own form read here.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from scipy.optimize import linear_sum_assignment

from molmo_ds.data.sample.point_text import read_any_points, read_points
from molmo_ds.data.sample.points import NONE
from molmo_ds.eval.row import Row, Scores, true_points

Point = tuple[float, float]
Box = Sequence[float]  # left, top, right, bottom in pixels; right and bottom do not belong to it
CATEGORIES = ("affordable", "counting", "reasoning", "spatial", "steerable")  # of PointBench
# height, width, runs: lengths of runs of pixels outside, inside, outside ... line by line, or by_columns
Mask = Mapping[str, Any]

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
    """Every point of the text in pixels of a width x height picture; beyond 100 % it is none.

    Points as Molmo2 writes them, or else as Molmo and others do.
    """
    out = [(point.x, point.y) for point in read_points(text, width, height)]
    if out:
        return out
    for pattern, whole in ((_CLICK, 100), (_PLAIN, 100), (_TAG, 100), (_SHORT, 1000)):
        for x, y in pattern.findall(text):
            x = float(x) * 100 / whole
            y = float(y) * 100 / whole
            if max(x, y) <= 100:
                out.append((x / 100 * width, y / 100 * height))
    return out


def pointing_scores(
    text: str, points: Sequence[Point], regions: Sequence[Box | Mask], size: tuple[int, int]
) -> dict[str, float]:
    """precision, recall and f1 of the points in `text` against `points`, pixels of a picture of `size` (width, height).

    Points are paired with the wanted ones so that the distances' sum is least; a pair counts when the rounded point
    lies in the wanted one's region. Where nothing is to be found, everything is 1 if no point is given, else 0. A text
    without points of Molmo2's form that is not wholly in another format of points scores 0.

    Raises ValueError where there is not one region per point, or a region holds no pixel of the picture.
    """
    if len(points) != len(regions):
        raise ValueError(
            f"There are {len(points)} points and {len(regions)} boxes or masks; give one per point."
        )
    for region in regions:
        _check(region, size)
    given = extract_points(text, *size)
    if not points:
        return dict.fromkeys(("precision", "recall", "f1"), float(not given))
    hits = 0
    if given and is_readable(text):
        distances = [[(a - c) ** 2 + (b - d) ** 2 for c, d in points] for a, b in given]
        pairs = nearest_pairs([[value**0.5 for value in row] for row in distances])
        hits = sum(_inside(given[i], regions[j], size) for i, j in pairs)
    precision = hits / max(len(given), 1)
    recall = hits / len(points)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
    }


def in_format(text: str) -> bool:
    """Whether a text is points and nothing else: one tag, or coordinates in brackets."""
    return _FORMAT.fullmatch(text.strip()) is not None


def is_readable(text: str) -> bool:
    """Whether a text holds points as Molmo2 writes them, or is points as Molmo does and nothing else."""
    return bool(read_points(text, 1, 1)) or in_format(text)


def score_points(reply: str, row: Row) -> Scores:
    """precision, recall and f1 of an annotation's points; its `boxes` or `masks` are their regions, one for each."""
    known = row.annotation
    if known.get("points") is None:
        raise ValueError(
            "The annotation has no `points`, which its score compares with; give it a list, maybe empty."
        )
    regions = known.get("masks") if known.get("masks") is not None else known.get("boxes")
    if regions is None:
        raise ValueError(
            "Pointing is scored by regions: give the annotation `boxes` in pixels or `masks`, one per point."
        )
    points = true_points(row)
    found = pointing_scores(reply, points, regions, row.size)
    readable = is_readable(reply) if points or extract_points(reply, *row.size) else True
    return {**found, "unreadable": float(not readable)}


def score_in_mask(reply: str, row: Row) -> Scores:
    """`all`, and the same for the row's category: whether the reply has points, and all lie in the only mask.

    A point's pixel is cut, not rounded. Source: allenai/molmo2 f3cb108, olmo/eval/evaluators.py (PointBenchEval).
    """
    [mask] = row.annotation["masks"]
    width, height = row.size
    places = [(math.floor(x), math.floor(y)) for x, y in read_any_points(reply, width, height)]
    hits = [x < width and y < height and inside((x, y), mask) for x, y in places]
    right = float(bool(hits) and all(hits))
    scores = {"all": right, "unreadable": float(not hits)}
    category = row.metadata.get("category")
    return scores | {category: right} if category in CATEGORIES else scores


def average_of_categories(means: Mapping[str, float]) -> dict[str, float]:
    """`average`: the plain mean over PointBench's categories, which is the figure that is published."""
    values = [means[name] for name in CATEGORIES if name in means]
    return {"average": math.fsum(values) / len(values)} if values else {}


def point_inside(row: Row) -> str:
    """A point in the middle of the longest line of the mask, as a reply: the truth of a region.

    Where no pixel is inside no reply is right, as in the reference.
    """
    [mask] = row.annotation["masks"]
    runs = mask["runs"]
    if len(runs) < 2:
        return NONE
    longest = max(range(1, len(runs), 2), key=lambda number: runs[number])
    place = sum(runs[:longest]) + runs[longest] // 2
    y, x = divmod(place, mask["width"])
    width, height = row.size
    return f"({100 * (x + 0.5) / width:.1f}, {100 * (y + 0.5) / height:.1f})"


def _check(region: Box | Mask, size: tuple[int, int]) -> None:
    if isinstance(region, Mapping):
        if (
            sum(region["runs"]) != region["height"] * region["width"]
            or sum(region["runs"][1::2]) < 1
        ):
            raise ValueError(
                "A mask holds no pixel, or its runs do not add up to its pixels; make the shards again."
            )
        return
    numbers = isinstance(region, list | tuple) and len(region) == 4
    if not numbers or not all(isinstance(n, int | float) and math.isfinite(n) for n in region):
        raise ValueError(f"A box is {region!r}; it is left, top, right and bottom in pixels.")
    left, top, right, bottom = region
    for first, end, length in ((left, right, size[0]), (top, bottom, size[1])):
        pixel = max(math.ceil(first), 0)
        if pixel >= min(end, length):
            raise ValueError(
                f"The box {list(region)} holds no pixel of a picture of {size[0]} x {size[1]}."
            )


def inside(point: Point, mask: Mask) -> bool:
    """Whether the rounded point lies in a mask."""
    x = round(point[0])
    y = round(point[1])
    width = mask["width"]
    height = mask["height"]
    if not (0 <= x < width and 0 <= y < height):
        return False
    place = x * height + y if mask.get("by_columns") else y * width + x
    return bisect_right(list(accumulate(mask["runs"])), place) % 2 == 1


def _inside(point: Point, region: Box | Mask, size: tuple[int, int]) -> bool:
    if isinstance(region, Mapping):
        return inside(point, region)
    x = round(point[0])
    y = round(point[1])
    left, top, right, bottom = region
    across = left <= x < min(right, size[0])
    down = top <= y < min(bottom, size[1])
    return across and down


def nearest_pairs(costs: list[list[float]]) -> list[tuple[int, int]]:
    """(row, column) pairs of least total cost, each row and column at most once."""
    rows, columns = linear_sum_assignment(costs)
    return list(zip(rows.tolist(), columns.tolist()))
