"""Captions of videos judged as Molmo2-CapEval is: how much of what people said they say, and how much of them is right.

Protocol: allenai/molmo2 f3cb108, olmo/eval/vixmo_caption_utils.py (eval_vixmo_caption2) and the evaluator of it; the
words are our own (`prompts.py`). Four calls a caption: recall (which of the people's statements it makes), claims (what
it says), kinds (the claims as single facts, each with a category) and consistency (which facts the people's description
says). There a reply that cannot be read counts 0, here it is a failure and counts nowhere.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from molmo_ds.eval.captions import prompts
from molmo_ds.eval.captions.judge import Judge, Lost
from molmo_ds.eval.captions.prompts import Messages
from molmo_ds.eval.captions.statements import STATED, Unreadable, read_claims, verdicts
from molmo_ds.eval.metrics import dense_caption

VERSION = f"films 1, captions {prompts.VERSION}"  # of the words
UNIT = "caption"
CATEGORIES = (
    *("Object", "Action", "Attribute", "Relation", "Location", "Quantity/Number"),
    *("State/Condition", "Event", "Motion/Trajectory", "Pose", "Gesture", "Emotion/Affect"),
    *("Identity", "OCR", "Camera", "Lighting/Weather", "Scene/Context", "Causation/Purpose"),
)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Film:
    """A caption and what people said of the same video."""

    id: str
    statements: tuple[str, ...]  # single facts
    categories: tuple[str, ...]  # of the statements
    description: str  # all that people said, as one text
    caption: str


@dataclass(kw_only=True)
class Judged:
    """What the judge found; None where it was not judged, and `failures` says why."""

    film: Film
    stated: list[bool] | None = None  # of each statement, whether the caption says it
    facts: list[tuple[str, str]] = field(default_factory=list)  # of the caption: (text, category)
    consistent: list[bool] | None = None  # of each fact, whether the description says it
    replies: dict[str, str] = field(default_factory=dict)  # to the calls of `stated`, `consistent`
    failures: dict[str, str] = field(default_factory=dict)  # call -> reason


def is_mine(rows: Any) -> bool:
    """Whether these are the predictions of molmo2_cap_eval."""
    return isinstance(rows, list) and any(
        isinstance(row, dict) and "statement_categories" in row for row in rows
    )


def read(rows: Sequence[Mapping[str, Any]]) -> list[Film]:
    """The captions of molmo2_cap_eval's predictions; ValueError where one lacks what the judge needs."""
    found = []
    for row in rows:
        texts = [
            row.get(name)
            for name in ("statements", "statement_categories", "description", "prediction")
        ]
        whole = all(isinstance(text, str) for text in texts)
        parts = [tuple(text.split("\n")) for text in texts[:2]] if whole else [(), ()]
        if not whole or len(parts[0]) != len(parts[1]) or not all(parts[0]):
            raise ValueError(
                f"The prediction {row.get('id')} lacks its statements, as many categories, or what people said; make"
                " the shards of molmo2_cap_eval again, and evaluate."
            )
        one = Film(
            id=str(row.get("id")),
            statements=parts[0],
            categories=parts[1],
            description=texts[2],
            caption=texts[3].strip(),
        )
        found.append(one)
    return found


async def ask(judge: Judge, film: Film, again: bool = False) -> Judged:
    """Every call about one caption, one after the other; an empty one is not sent: it states and claims nothing.

    Args:
        again: a call whose reply cannot be used is asked once more.
    """
    found = Judged(film=film)
    if not film.caption:
        found.stated = [False] * len(film.statements)
        return found
    count = len(film.statements)
    found.stated = await _call(
        judge,
        found,
        "recall",
        prompts.recall(film.statements, film.caption, "video"),
        lambda reply: verdicts(reply, count, STATED),
        again,
    )
    claims = await _call(
        judge, found, "claims", prompts.claims(film.caption, "video"), read_claims, again
    )
    if claims is None:
        return found
    facts = await _call(judge, found, "kinds", prompts.kinds(claims, CATEGORIES), read_facts, again)
    if facts is None:
        return found
    found.facts = facts
    found.consistent = await _call(
        judge,
        found,
        "consistency",
        prompts.supported([text for text, _ in facts], film.description),
        lambda reply: verdicts(reply, len(facts), STATED),
        again,
    )
    return found


async def _call(
    judge: Judge,
    found: Judged,
    call: str,
    messages: Messages,
    parse: Callable[[str], T],
    again: bool,
) -> T | None:
    """What `parse` makes of the reply; where there is none to read, None and the reason among the failures."""
    for fresh in (False, True) if again else (False,):
        try:
            reply = await judge.ask(messages, {"temperature": 0}, fresh)
            found.replies[call] = reply
            found.failures.pop(call, None)
            return parse(reply)
        except Lost as error:
            found.failures[call] = f"{error.kind}: {error.reason}"
        except Unreadable as error:
            found.failures[call] = f"unreadable: {error}"
    return None


def read_facts(reply: str) -> list[tuple[str, str]]:
    """(text, category) of each line of a numbered list; the category is "" where it is none of the eighteen."""
    known = {name.lower(): name for name in CATEGORIES}
    facts = []
    for line in read_claims(reply):
        text, _, category = line.rpartition("|")
        named = known.get(category.strip(" *_`.").lower(), "")
        facts.append((text.strip() if text.strip() else line, named))
    return facts


def content(judged: Sequence[Judged]) -> dict[str, Any]:
    """What is written of them: figures of both readings, failures, every verdict."""
    return {
        "metrics": figures(judged),
        "by_line": by_line(judged),
        "failures": [
            {"id": one.film.id, "reason": f"{call}: {reason}"}
            for one in judged
            for call, reason in one.failures.items()
        ],
        "captions": [
            {
                "id": one.film.id,
                "stated": one.stated,
                "facts": [" | ".join(fact) for fact in one.facts],
                "consistent": one.consistent,
            }
            for one in judged
        ],
    }


def figures(judged: Sequence[Judged]) -> dict[str, float]:
    """Means over videos in percent, `cap_f1` of the two means, `n_...` how many videos, and the same by category.

    A category's figure is the mean over the videos that have it. Facts of no known category are in the whole only.
    """
    found: dict[str, float] = {}
    sides = {
        "recall": [(one.stated, one.film.categories) for one in judged],
        "consistency": [(one.consistent, [kind for _, kind in one.facts]) for one in judged],
    }
    for name, rows in sides.items():
        shares = [_share(said) for said, _ in rows if said]
        if shares:
            found[name] = _percent(shares)
        found[f"n_{name}"] = len(shares)
    found |= dense_caption.cap_f1(found)
    for name, rows in sides.items():
        kinds: dict[str, list[float]] = defaultdict(list)
        for said, categories in rows:
            mine = defaultdict(list)
            for right, kind in zip(said or (), categories):
                mine[kind].append(right)
            for kind, part in mine.items():
                kinds[kind].append(_share(part))
        found |= {f"{name}_{kind}": _percent(kinds[kind]) for kind in CATEGORIES if kind in kinds}
    counts = [len(one.facts) for one in judged if one.facts]
    if counts:
        found["num_statements"] = sum(counts) / len(counts)
    found["without_category"] = sum(not kind for one in judged for _, kind in one.facts)
    return found


def by_line(judged: Sequence[Judged]) -> dict[str, float]:
    """The reference's reading, in percent: line k is of statement k, one of neither word is left out, none is 0."""
    stated = [_lines(one.replies.get("recall"), len(one.film.statements)) for one in judged]
    right = [_lines(one.replies.get("consistency"), len(one.facts)) for one in judged]
    found = {"recall": _percent(stated), "consistency": _percent(right)}
    return found | dense_caption.cap_f1(found)


def _lines(reply: str | None, count: int) -> float:
    read = dense_caption.read_recall(reply or "")[:count]
    known = [one for one in read if one is not None]
    return _share(known) if known else 0.0


def _share(said: Sequence[bool]) -> float:
    return sum(said) / len(said)


def _percent(values: Sequence[float]) -> float:
    return 100 * math.fsum(values) / len(values)
