"""From scored rows to the figures of a benchmark: once, on one process, equal to the last bit in whatever order.

Sums are math.fsum's, which rounds once, so that neither the order of rows nor the number of ranks shows.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from molmo_ds.eval.row import UNREADABLE, Row, Scores
from molmo_ds.eval.task import MODELS, Task

WHOLE_GROUPS = "m_b_acc"  # the name of allenai/molmo's later code
GUESSES = 20  # constant answers of each kind that are tried for the chance level
TRIED_ON = 1000  # rows that each of them is tried on
_POINTS = re.compile(r"<points?\b.*?</points?>", re.S)
_LABELS = re.compile(r'alt=".*?(?=</points?>)', re.S)  # of points: what they show
REFERENCE_NAMES = {"anls": "ansl"}  # our name of a metric -> the reference's, where they differ
Figure = dict[str, float | int | None]


class _Kept(NamedTuple):
    picture: str
    scores: Scores
    categories: Mapping[str, str]
    group: str | None


def scored_row(task: Task, row: Row, reply: str | None, end: str, **more: Any) -> dict[str, Any]:
    """The line of a row in logs and predictions; `scores` is empty where its truth is not public or it has no reply.

    `reply` None is the true answer itself. `end` says how the reply ended: "stop", "length", "context", or
    "failed: SENTENCE" where there is none. `more` is added as it is. Raises ValueError, with the row's id, for a truth
    that cannot be right.
    """
    failed = end.startswith("failed")
    try:
        truth = task.truth(row)
        reply = truth if reply is None else reply
        scores = {} if truth is None or failed else task.score(reply, row)
        categories = dict(task.categories(row))
        group = {} if task.group is None else {"group": task.group(row)}
    except KeyError as error:
        raise ValueError(
            f"{row.id} cannot be scored: its record has no {error}, which {task.name} needs; make the shards again."
        ) from error
    except ValueError as error:
        raise ValueError(f"{row.id} cannot be scored: {error}") from None
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(
            f"{row.id} cannot be scored: its record has another form than {task.name} needs ({error}); make the shards"
            " again."
        ) from error
    return {
        "id": row.id,
        "task": task.name,
        "picture": row.picture,
        "reply": reply,
        "truth": truth,
        "scores": scores,
        "categories": categories,
        "end": end,
        **group,
        **more,
    }


def check_truths(task: Task, rows: Iterable[Row]) -> str | None:
    """A sentence where true answers score 0 by their own rule, so that no reply can be right; else None.

    Raises ValueError as `scored_row` does: before anything is asked.
    """
    scored = [scored_row(task, row, None, "stop") for row in rows]
    lost = [row["id"] for row in scored if row["scores"].get(task.headline) == 0]
    if not lost:
        return None
    return (
        f"{len(lost)} of {len(scored)} true answers score 0 by the rule of {task.name}, that of {lost[0]} for one, so"
        " that no reply to them can be right; look at the shards."
    )


def score(
    task: Task, rows: Iterable[Mapping[str, Any]], chance: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The figures of a task from its `scored_row`s; those without scores are counted and left out of every mean.

    A figure is {value, n, standard_error}: the mean over the n rows that have the metric, and its standard error
    clustered by picture (None below two pictures). `categories` holds the headline's figure for each category.
    Raises ValueError where a row is there twice.
    """
    kept: list[_Kept] = []
    seen: set[str] = set()
    counts: Counter = Counter()
    for row in rows:
        if row["id"] in seen:
            raise ValueError(f"The row {row['id']} is there twice; each question counts once.")
        seen.add(row["id"])
        failed = row["end"].startswith("failed")
        counts["failed"] += failed
        counts["without_end"] += not failed and row["end"] != "stop"
        counts["without_answer"] += row["truth"] is None
        if row["scores"]:
            group = row.get("group")
            kept.append(_Kept(row["picture"], row["scores"], row["categories"], group))
    replies = len(seen) - counts["failed"]
    metrics = figures(kept)
    unreadable = metrics.pop(UNREADABLE, None)
    if kept and task.group is not None:
        metrics[WHOLE_GROUPS] = whole_groups(kept, task.headline)
    for name, value in task.derived(
        {name: figure["value"] for name, figure in metrics.items()}
    ).items():
        metrics[name] = {"value": value, "n": len(kept), "standard_error": None}
    return {
        "task": task.name,
        "questions": len(seen),
        "scored": len(kept),
        "pictures": len({one.picture for one in kept}),
        "failed": counts["failed"],
        "without_public_answer": counts["without_answer"],
        "share_without_end": counts["without_end"] / replies if replies else None,
        "share_unreadable": unreadable["value"] if unreadable else None,
        "headline": task.headline,
        "metrics": metrics,
        "chance": dict(chance or {}),
        "published": _published(task),
        "categories": _categories(task, kept),
    }


def whole_groups(rows: Sequence[_Kept], headline: str) -> Figure:
    """The share of groups all of whose rows are right (multi-binary accuracy)."""
    pictures = {row.group: row.picture for row in rows}
    right: dict[str | None, float] = {}
    for row in rows:
        right[row.group] = min(right.get(row.group, 1.0), float(row.scores[headline]))
    return figure([(pictures[group], value) for group, value in right.items()])


def figures(rows: Sequence[_Kept]) -> dict[str, Figure]:
    """The figure of every metric over the rows that have it, by name."""
    columns: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for row in rows:
        for name, value in row.scores.items():
            columns[name].append((row.picture, float(value)))
    return {name: figure(columns[name]) for name in sorted(columns)}


def figure(column: Sequence[tuple[str, float]]) -> Figure:
    """Mean, number and standard error of (picture, value) pairs.

    Questions about one picture are not independent, so that residuals are summed by picture before they are squared
    (Liang and Zeger's cluster-robust variance, with G / (G - 1) for G pictures).
    """
    count = len(column)
    mean = math.fsum(value for _, value in column) / count
    residuals: dict[str, list[float]] = defaultdict(list)
    for picture, value in column:
        residuals[picture].append(value - mean)
    groups = len(residuals)
    error = None
    if groups > 1:
        squares = math.fsum(math.fsum(group) ** 2 for group in residuals.values())
        error = math.sqrt(squares * groups / (groups - 1)) / count
    return {"value": mean, "n": count, "standard_error": error}


def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every name over the rows that have it."""
    columns: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            columns[name].append(float(value))
    return {name: math.fsum(values) / len(values) for name, values in columns.items()}


def chance_level(task: Task, rows: Iterable[Row]) -> dict[str, float]:
    """What the best constant answer would score, metric by metric; nothing where no truth is public.

    Tried on TRIED_ON rows at equal distances in the order of their ids are the GUESSES commonest truths, and one truth
    each of the commonest texts around points and of the commonest places: with labels and points in them hardly two
    truths are equal, and the count or the places that are guessed best may be in none of the commonest.
    """
    known = {row.id: (row, truth) for row in rows if (truth := task.truth(row)) is not None}
    order = sorted(known)
    distance = math.ceil(len(order) / TRIED_ON) or 1
    chosen = [known[name] for name in order[::distance]]
    truths = by_number([truth for _, truth in chosen])
    guesses = truths[:GUESSES]
    for pattern in (_POINTS, _LABELS):
        kind_of = {truth: pattern.sub("", truth) for truth in truths}
        kinds = by_number([kind_of[truth] for _, truth in chosen])
        # the commonest truth of a kind is the last one set
        one_each = {kind_of[truth]: truth for truth in reversed(truths)}
        guesses += [one_each[kind] for kind in kinds[:GUESSES]]
    best: dict[str, float] = {}
    for guess in dict.fromkeys(guesses):
        for name, value in mean([task.score(guess, row) for row, _ in chosen]).items():
            best[name] = max(value, best.get(name, 0.0))
    best.pop(UNREADABLE, None)
    return best


def by_number(texts: Sequence[str]) -> list[str]:
    """The distinct ones, the commonest first, of equally common ones the first by alphabet."""
    return [text for text, _ in sorted(Counter(texts).items(), key=lambda one: (-one[1], one[0]))]


def average(results: Iterable[Mapping[str, Any]]) -> float | None:
    """The plain mean of several tasks' headlines, as the paper's average of eleven; None where one has no figure."""
    values = [result["metrics"].get(result["headline"], {}).get("value") for result in results]
    return math.fsum(values) / len(values) if values and None not in values else None


def reference_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The values alone, under the reference's names, in sorted order."""
    named = {
        REFERENCE_NAMES.get(name, name): one["value"] for name, one in result["metrics"].items()
    }
    return dict(sorted(named.items()))


def _published(task: Task) -> dict[str, Any]:
    if task.published is None:
        return {}
    return {"split": task.published.split, **dict(zip(MODELS, task.published.figures, strict=True))}


def _categories(task: Task, rows: Sequence[_Kept]) -> dict[str, dict[str, Figure]]:
    columns: dict[str, dict[str, list[tuple[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if task.headline in row.scores:
            for kind, category in row.categories.items():
                columns[kind][category].append((row.picture, float(row.scores[task.headline])))
    return {
        kind: {name: figure(found[name]) for name in sorted(found)}
        for kind, found in sorted(columns.items())
    }
