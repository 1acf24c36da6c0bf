"""Figures over judged captions, and the files that hold them: our own and the reference's two."""

from __future__ import annotations

import collections
import datetime
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molmo_ds.eval.captions.verdict import Verdict
from molmo_ds.eval.metrics import dense_caption
from molmo_ds.files import write_atomic

FIRST_STATEMENTS = 10  # of recall_at_10
Metrics = dict[str, float]
Lines = list[bool]


@dataclass(frozen=True)
class Reading:
    """What one way of reading the replies finds: a list of verdicts for each caption that has one."""

    stated: list[Lines]
    consistent: list[Lines]
    repeating: list[bool]


def by_number(verdicts: Sequence[Verdict]) -> Reading:
    """Our reading: a reply counts when it holds one verdict for each statement."""
    return Reading(
        [one.stated for one in verdicts if one.stated],
        [one.consistent for one in verdicts if one.consistent],
        [one.repeating for one in verdicts if one.repeating is not None],
    )


def by_line(verdicts: Sequence[Verdict]) -> Reading:
    """The reference's reading: every line that is understood counts, whatever is missing or too much."""
    stated = []
    consistent = []
    repeating = []
    for one in verdicts:
        replies = one.replies
        if "recall" in replies:
            stated.append(_understood(dense_caption.read_recall(replies["recall"])))
        elif not one.task.caption:
            stated.append(one.stated)
        if "consistency" in replies:
            inconsistent = _understood(dense_caption.read_consistency(replies["consistency"]))
            consistent.append([not line for line in inconsistent])
        if "repetition" in replies:
            repeating.append(dense_caption.read_repetition(replies["repetition"]))
        elif one.repeating is not None:
            repeating.append(one.repeating)
    return Reading(
        [one for one in stated if one], [one for one in consistent if one], _understood(repeating)
    )


def metrics(reading: Reading) -> Metrics:
    """The figures of a reading, in percent but for num_statements; one that nothing was judged for is left out.

    recall and consistency are means over captions, and cap_f1 is the harmonic mean of these two means
    (arXiv:2409.17146); `n_...` say over how many captions, `..._error` is the standard error of a mean.
    """
    found: Metrics = {}
    recall = [_share(one) for one in reading.stated]
    if recall:
        found["recall"] = _percent(recall)
        found["recall_at_10"] = _percent([_share_of_first(one) for one in reading.stated])
        found["recall_error"] = _error(recall)
    consistency = [_share(one) for one in reading.consistent]
    if consistency:
        found["consistency"] = _percent(consistency)
        found["consistency_error"] = _error(consistency)
        found["num_statements"] = sum(map(len, reading.consistent)) / len(reading.consistent)
    if recall and consistency:
        both = dense_caption.cap_f1(found)
        found["cap_f1"] = both["cap_f1"]
        found["arithmetic_mean"] = both["avg"]
    if reading.repeating:
        found["is_repeating"] = _percent(reading.repeating)
    found["n_recall"] = len(recall)
    found["n_consistency"] = len(consistency)
    if reading.repeating:
        found["n_repeating"] = len(reading.repeating)
    return found


def _understood(lines: Sequence[bool | None]) -> Lines:
    return [line for line in lines if line is not None]


def _share(lines: Lines) -> float:
    return sum(lines) / len(lines)


def _share_of_first(lines: Lines) -> float:
    return min(sum(lines), FIRST_STATEMENTS) / min(len(lines), FIRST_STATEMENTS)


def _percent(values: Sequence[float]) -> float:
    return 100 * math.fsum(values) / len(values)


def _error(values: Sequence[float]) -> float:
    """The standard error of the mean in percent; 0 for a single value."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return 100 * math.sqrt(squares / max(len(values) - 1, 1) / len(values))


def failures(verdicts: Sequence[Verdict]) -> Iterator[dict[str, str]]:
    """Every call that gave nothing to score, with its picture."""
    for one in verdicts:
        for failure in one.failures:
            yield {"picture": one.task.reference.picture, **vars(failure)}


def counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """What goes with the figures: captions, empty ones, ones with points in them, failures by call and kind."""
    kinds = collections.Counter(f"{row['call']}: {row['kind']}" for row in failures(verdicts))
    return {
        "captions": len(verdicts),
        "empty_captions": sum(not one.task.caption for one in verdicts),
        "captions_with_points": sum("<point" in one.task.caption for one in verdicts),
        "captions_with_a_failure": sum(bool(one.failures) for one in verdicts),
        **dict(sorted(kinds.items())),
    }


def prefix(size: int | None, repetition: bool) -> str:
    """The beginning of the files' names, as the reference writes it: the sample, and which metrics if not all."""
    parts = [f"s{size}"] if size is not None else []
    if not repetition:
        parts.append("mconsistency-recall")
    return "".join(f"{part}-" for part in parts)


def write(
    folder: Path, begin: str, verdicts: Sequence[Verdict], provenance: dict[str, Any]
) -> Path:
    """Write BEGINjudge.json, BEGINresults_v3.json and BEGINall-results-v3.json; the path of the first.

    The last two have the reference's keys and its reading.
    """
    date = datetime.datetime.now()
    judged = folder / f"{begin}judge.json"
    ours = {
        "metrics": metrics(by_number(verdicts)),
        "by_line": metrics(by_line(verdicts)),
        "counts": counts(verdicts),
        "provenance": provenance,
        "date": date.strftime("%m/%d/%Y, %H:%M:%S"),
        "failures": list(failures(verdicts)),
        "pictures": [_row(one) for one in verdicts],
    }
    theirs = {
        "metrics": ["recall", "consistency", *(["repeat"] if provenance["repetition"] else [])],
        "sample": provenance["sample"],
        "date": date.strftime("%Y%m%d-%H%M%S"),
        "results": {one.task.reference.picture: _their_row(one) for one in verdicts},
    }
    figures = metrics(by_line(verdicts))
    named = ("num_statements", "consistency", "is_repeating", "recall", "recall_at_10")
    _write(folder / f"{begin}all-results-v3.json", theirs)
    _write(
        folder / f"{begin}results_v3.json",
        {name: figures[name] for name in named if name in figures},
    )
    _write(judged, ours)
    return judged


def _row(one: Verdict) -> dict[str, Any]:
    return {
        "picture": one.task.reference.picture,
        "caption": one.task.caption,
        "stated": one.stated,
        "claims": one.claims,
        "consistent": one.consistent,
        "repeating": one.repeating,
    }


def _their_row(one: Verdict) -> dict[str, Any]:
    row: dict[str, Any] = {"image_url": one.task.reference.picture, "caption": one.task.caption}
    reply = one.replies.get("recall")
    if reply is not None:
        scores = dense_caption.read_recall(reply)
        known = _understood(scores)
        row["recall"] = {
            "recall_str": reply,
            "num_statements": len(known),
            "num_covered": sum(known),
            "statement_scores": scores,
        }
    reply = one.replies.get("consistency")
    if reply is not None:
        scores = dense_caption.read_consistency(reply)
        known = _understood(scores)
        row["consistency"] = {
            "consistency_str": reply,
            "statements_str": one.replies.get("claims"),
            "num_statements": len(known),
            "num_consistent": len(known) - sum(known),
            "statement_scores": scores,  # true is inconsistent
        }
    reply = one.replies.get("repetition")
    if reply is not None:
        row["repeating"] = {
            "is_repeating": dense_caption.read_repetition(reply),
            "is_repeating_str": reply,
        }
    return row


def _write(path: Path, values: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(values, indent=1) + "\n").encode())
