"""Counting: the number that a reply says, and the number of points that it shows.

Source: allenai/molmo 793fa38, olmo/eval/evaluators.py (PointCountEval). allenai/molmo2 f3cb108 counts the points of a
reply in any form instead, which is `correct_points` here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from molmo_ds.data.sample.point_text import read_any_points
from molmo_ds.eval.metrics.reply import whole_number
from molmo_ds.eval.row import Row, Scores, true_answer

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_TO_TWENTY = [
    *_NUMBERS,
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
]
_TO_TWENTY += ["nineteen", "twenty"]


def point_count(prediction: str) -> int | None:
    """The last word in digits or words to twenty, else the digits after the last `a total of` of the first line.

    None where there is no number: as in the reference, `There are none.` has none.
    """
    text = prediction.strip().lower().rstrip(".").strip()
    words = text.split()
    if not words:
        return None
    number = whole_number(words[-1])
    if number is None and words[-1] in _TO_TWENTY:
        number = _TO_TWENTY.index(words[-1])
    if number is None:
        total = re.match(r".*a total of ([0-9]+)", text)
        number = whole_number(total.group(1)) if total else None
    return number


def point_count_scores(prediction: str, count: int) -> dict[str, float]:
    """`valid` (a number was given), `correct` and `close` (off by at most 1).

    ValueError where the true count is no whole number of at least 0.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"The true count is {count!r}; it is a whole number of at least 0.")
    got = point_count(prediction)
    valid = got is not None
    return {
        "valid": float(valid),
        "correct": float(valid and got == count),
        "close": float(valid and abs(got - count) <= 1),
    }


def true_count(row: Row) -> int | None:
    """The record's count, else the number of points of the annotation; None where neither is known."""
    if row.metadata.get("count") is not None:
        return row.metadata["count"]
    points = row.annotation.get("points")
    return None if points is None else len(points)


def true_count_text(row: Row) -> str | None:
    """What training would teach where the points are known, else the bare number."""
    count = true_count(row)
    return (
        true_answer(row)
        if row.annotation.get("points") is not None
        else None
        if count is None
        else str(count)
    )


def score_count(reply: str, row: Row) -> Scores:
    """`valid`, `correct` and `close`, `correct_<n>` for the true count n, and `correct_points`."""
    count = true_count(row)
    if count is None:
        raise ValueError(
            "The annotation has no `points`, which its count is compared with; give it a list, maybe empty."
        )
    scores = point_count_scores(reply, count)
    shown = len(read_any_points(reply.lower(), 100, 100))
    return {
        **scores,
        f"correct_{count}": scores["correct"],
        "correct_points": float(shown == count),
        "unreadable": 1.0 - scores["valid"],
    }


def per_category_average(means: Mapping[str, float]) -> dict[str, float]:
    """The plain mean over the true counts, however many questions each has."""
    values = [value for name, value in sorted(means.items()) if re.fullmatch(r"correct_\d+", name)]
    return {"per_category_average": math.fsum(values) / len(values)} if values else {}
