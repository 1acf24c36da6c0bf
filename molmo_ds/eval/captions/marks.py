"""Free answers about videos with marks from a judge: MLVU's scenes and summaries, by two criteria from 1 to 5 each.

Protocol: github.com/JUNJIE99/MLVU, as mattw-ai2/robo_mm_olmo_gantry has it in olmo/eval/mlvu_utils.py; the words are
our own. There a reply of the judge that cannot be read counts 0, here it is a failure and counts nowhere.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from molmo_ds.eval.captions.judge import Judge, Lost
from molmo_ds.eval.captions.prompts import Messages
from molmo_ds.eval.captions.statements import Unreadable

VERSION = "1"  # of the words
UNIT = "answer"
LOWEST = 1.0
HIGHEST = 5.0
CRITERIA = {
    "sub_scene": {
        "accuracy": "Mark each of the points that a right answer makes: 1 if the answer misses it, 3 if it speaks of it"
        " but not rightly in every detail, 5 if it makes it. The accuracy is the mean of these marks.",
        "relevance": "How far the answer keeps to the question, whether it is right or not: 1 speaks of something else,"
        " 2 adds much that was not asked, 3 keeps to it but sounds unsure, 4 mostly keeps to it and sounds sure, 5"
        " keeps to it wholly and is sure.",
    },
    "summary": {
        "completeness": "How much of the content of the right summary the other holds: 1 hardly any of it, 2 some, 3"
        " most of the main points, 4 nearly all, 5 all.",
        "reliability": "How free the summary is of errors and contradictions, and how clear: 1 many errors and"
        " confused, 2 several, 3 few, 4 hardly any, 5 none and easy to follow. What it adds is"
        " no error unless it contradicts the right summary or cannot be.",
    },
}
WHAT = {
    "sub_scene": ("question", "points that a right answer makes", "answer"),
    "summary": ("task", "right summary", "summary"),
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A reply and what it is compared with."""

    id: str
    kind: str  # of CRITERIA
    question: str
    truth: str  # points that a right answer makes, or a right summary
    reply: str


@dataclass(frozen=True, kw_only=True)
class Marked:
    """An answer's marks by criterion, or why there are none."""

    answer: Answer
    marks: Mapping[str, float] | None = None
    failure: str = ""


def is_mine(rows: Any) -> bool:
    """Whether these are the predictions of mlvu_gen."""
    return isinstance(rows, list) and any(
        isinstance(row, dict) and row.get("task_type") in CRITERIA for row in rows
    )


def read(rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """The answers of mlvu_gen's predictions; ValueError where one lacks what the judge needs."""
    found = []
    for row in rows:
        kind = row.get("task_type")
        truth = row.get("scoring_points") if kind == "sub_scene" else row.get("answer")
        texts = (truth, row.get("question"), row.get("prediction"))
        if kind not in CRITERIA or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"The prediction {row.get('id')} lacks its task_type, question, answer or scoring points; make the"
                " shards of mlvu_gen again, and evaluate."
            )
        one = Answer(
            id=str(row.get("id")), kind=kind, question=texts[1], truth=truth, reply=texts[2]
        )
        found.append(one)
    return found


def messages(answer: Answer) -> Messages:
    """What the judge is asked."""
    asked, right, given = WHAT[answer.kind]
    criteria = CRITERIA[answer.kind]
    form = ", ".join(f'"{name}": MARK' for name in criteria)
    parts = [
        f"Mark what a program says of a video, from {LOWEST:.0f} to {HIGHEST:.0f}, by two criteria.",
        *(f"{name}: {rule}" for name, rule in criteria.items()),
        f"The {asked}: {answer.question.strip()}",
        f"The {right}:\n{answer.truth.strip()}",
        f"The program's {given}:\n{answer.reply.strip()}",
        f"Say in a sentence or two why, and end with one line of JSON: {{{form}}}",
    ]
    return [{"role": "user", "content": "\n\n".join(parts)}]


def read_marks(reply: str, kind: str) -> dict[str, float]:
    """The marks in the last object of a reply; Unreadable where one is missing or is not from 1 to 5."""
    objects = re.findall(r"\{[^{}]*\}", reply)
    try:
        said = json.loads(objects[-1].replace("'", '"')) if objects else {}
    except ValueError:
        said = {}
    marks = {}
    for name in CRITERIA[kind]:
        value = said.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unreadable(f"There is no mark for {name} in '{' '.join(reply.split())[-60:]}'.")
        if not LOWEST <= value <= HIGHEST:
            raise Unreadable(f"The mark for {name} is {value}, which is not from 1 to 5.")
        marks[name] = float(value)
    return marks


async def ask(judge: Judge, answer: Answer, again: bool = False) -> Marked:
    """One answer's marks; an empty one is not sent and has the lowest."""
    if not answer.reply.strip():
        return Marked(answer=answer, marks=dict.fromkeys(CRITERIA[answer.kind], LOWEST))
    failure = ""
    for fresh in (False, True) if again else (False,):
        try:
            reply = await judge.ask(messages(answer), {"temperature": 0}, fresh)
            return Marked(answer=answer, marks=read_marks(reply, answer.kind))
        except Lost as error:
            failure = f"{error.kind}: {error.reason}"
        except Unreadable as error:
            failure = f"unreadable: {error}"
    return Marked(answer=answer, failure=failure)


def figures(marked: Sequence[Marked]) -> dict[str, float]:
    """Means of marks as `sub_scene_accuracy`, the sum of both as `sub_scene_total`, how many as `n_sub_scene`."""
    found: dict[str, float] = {}
    for kind, criteria in CRITERIA.items():
        marks = [one.marks for one in marked if one.answer.kind == kind and one.marks is not None]
        if not marks:
            continue
        means = {
            f"{kind}_{name}": math.fsum(one[name] for one in marks) / len(marks)
            for name in criteria
        }
        found |= means | {f"{kind}_total": math.fsum(means.values()), f"n_{kind}": len(marks)}
    return found


def content(marked: Sequence[Marked]) -> dict[str, Any]:
    """What is written of them: figures, failures, every mark."""
    return {
        "metrics": figures(marked),
        "failures": [
            {"id": one.answer.id, "reason": one.failure} for one in marked if one.marks is None
        ],
        "answers": [
            {"id": one.answer.id, "kind": one.answer.kind, "marks": dict(one.marks)}
            for one in marked
            if one.marks is not None
        ],
    }
