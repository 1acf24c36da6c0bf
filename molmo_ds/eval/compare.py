"""Two runs on the same questions: a paired test, and the replies that changed.

The test is a paired t test of the differences question by question, with the questions of one picture as one cluster:
the mean difference over its cluster-robust standard error, with as many degrees of freedom as pictures less one. For
scores of 0 and 1 and a picture a question it asks what McNemar's test asks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.row import UNREADABLE
from molmo_ds.eval.saved import scored_rows
from molmo_ds.eval.score import figure

log = logging.getLogger(__name__)
ROWS = "rows.jsonl"  # of a results folder: its scored rows
Scored = Mapping[str, Any]  # eval/score.py:scored_row


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of one task in two runs, over the questions that both have scored."""

    task: str
    metric: str
    first: float
    second: float
    questions: int
    pictures: int
    standard_error: float | None  # of second - first; None below two pictures
    p_value: float | None  # two-sided; None where it cannot be said
    better: list[tuple[Scored, Scored]]  # (in the first run, in the second), by id
    worse: list[tuple[Scored, Scored]]
    otherwise: list[tuple[Scored, Scored]]  # another reply of the same score
    only_first: int  # questions that only one of the runs has scored
    only_second: int
    other_truth: int  # compared questions whose true answer is another in the second run


def compare(
    first: Iterable[Scored], second: Iterable[Scored], metric: str = ""
) -> list[Comparison]:
    """The comparison of every task that both runs have; `metric` = "" is the headline of each.

    Raises ValueError where they have no task in common, or a question is there twice.
    """
    ours = _by_task(first)
    theirs = _by_task(second)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise ValueError(
            f"The runs have no task in common: {', '.join(ours) or 'none'} and {', '.join(theirs) or 'none'}."
        )
    lonely = sorted(set(ours) ^ set(theirs))
    if lonely:
        log.warning("Only one of the runs has %s.", ", ".join(lonely))
    return [_compared(name, ours[name], theirs[name], metric or headline(name)) for name in shared]


def headline(name: str) -> str:
    """The headline metric of TASK or TASK:SPLIT."""
    task = BENCHMARKS.get(name.partition(":")[0])
    if task is None:
        raise ValueError(
            f"The task {name} is none of ours; name the metric to compare with --metric."
        )
    return task.headline


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The scored rows of a file of JSON lines, of a results folder, or of all results folders directly below one.

    Raises ValueError where there are none, or a line is no row.
    """
    files = [path] if path.is_file() else sorted({*path.glob(ROWS), *path.glob(f"*/{ROWS}")})
    if not files:
        raise ValueError(
            f"There is no {ROWS} in {path} or one folder below; give a results folder of molmo-ds evaluate."
        )
    for file in files:
        yield from scored_rows(file)


def report(found: Comparison, names: tuple[str, str], shown: int) -> str:
    """A few lines for people, with the first `shown` replies that became better and worse."""
    difference = found.second - found.first
    error = "" if found.standard_error is None else f" ± {found.standard_error:.4f}"
    chance = "" if found.p_value is None else f", p = {found.p_value:.3g}"
    lines = [
        f"{found.task}: {found.metric} {found.first:.4f} -> {found.second:.4f}: {difference:+.4f}{error}{chance}"
        f" ({found.questions:,} questions, {found.pictures:,} pictures)",
        f"  {len(found.better):,} better, {len(found.worse):,} worse, {len(found.otherwise):,} changed in words only",
    ]
    if found.only_first or found.only_second:
        lines.append(
            f"  left out: {found.only_first:,} only in {names[0]}, {found.only_second:,} only in {names[1]}"
        )
    if found.other_truth:
        lines.append(
            f"  {found.other_truth:,} of the questions have another true answer in {names[1]}"
        )
    for what, pairs in (("better", found.better), ("worse", found.worse)):
        for one, other in pairs[:shown]:
            said = f"{one['reply']!r} -> {other['reply']!r}, true {one['truth']!r}"
            lines.append(f"  {what}: {one['id']}: {said}")
    return "\n".join(lines)


def _compared(
    name: str, first: dict[str, Scored], second: dict[str, Scored], metric: str
) -> Comparison:
    both = sorted(set(first) & set(second))
    pairs = [(first[one], second[one]) for one in both]
    pairs = [pair for pair in pairs if all(metric in one["scores"] for one in pair)]
    if not pairs:
        known = sorted(
            {score for rows in (first, second) for one in rows.values() for score in one["scores"]}
        )
        raise ValueError(
            f"No question of {name} has the metric '{metric}' in both runs; there are {', '.join(known)}."
        )
    pictures = [one["picture"] for one, _ in pairs]
    before = [float(one["scores"][metric]) for one, _ in pairs]
    after = [float(other["scores"][metric]) for _, other in pairs]
    differences = [new - old for old, new in zip(before, after)]
    change = figure(list(zip(pictures, differences)))
    groups = len(set(pictures))
    # the fewer replies are unreadable, the better
    gains = [-one for one in differences] if metric == UNREADABLE else differences
    changed = list(zip(gains, pairs))
    return Comparison(
        task=name,
        metric=metric,
        first=figure(list(zip(pictures, before)))["value"],
        second=figure(list(zip(pictures, after)))["value"],
        questions=len(pairs),
        pictures=groups,
        standard_error=change["standard_error"],
        p_value=_p_value(change["value"], change["standard_error"], groups),
        better=[pair for gain, pair in changed if gain > 0],
        worse=[pair for gain, pair in changed if gain < 0],
        otherwise=[
            pair for gain, pair in changed if gain == 0 and pair[0]["reply"] != pair[1]["reply"]
        ],
        only_first=len(first) - len(pairs),
        only_second=len(second) - len(pairs),
        other_truth=sum(one["truth"] != other["truth"] for one, other in pairs),
    )


def _p_value(difference: float, error: float | None, groups: int) -> float | None:
    if error is None:
        return None
    if error == 0:
        # every picture changed the same: nothing to estimate a spread from
        return 1.0 if difference == 0 else None
    return float(2 * student.sf(abs(difference / error), groups - 1))


def _by_task(rows: Iterable[Scored]) -> dict[str, dict[str, Scored]]:
    """TASK:SPLIT -> id -> row, of the rows that are scored."""
    found: dict[str, dict[str, Scored]] = {}
    for row in rows:
        name = ":".join(row["id"].split(":")[:2])
        mine = found.setdefault(name, {})
        if row["id"] in mine:
            raise ValueError(
                f"The row {row['id']} is there twice in one run; compare one results folder with another."
            )
        mine[row["id"]] = row
    return {
        name: {key: row for key, row in mine.items() if row["scores"]}
        for name, mine in found.items()
    }
