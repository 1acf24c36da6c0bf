"""RealWorldQA: a letter, or a short answer.

Source: allenai/molmo 793fa38, olmo/eval/vqa.py.
"""

from __future__ import annotations

import re

from molmo_ds.eval.metrics.choice import named_option, read_option, select_mc_option
from molmo_ds.eval.metrics.reply import parse_answer, true_answers
from molmo_ds.eval.metrics.vqa import normalise_answer
from molmo_ds.eval.row import Row, Scores

_OPTION = re.compile(r"^([A-D])\. (.+)$", re.M)  # a line of a question


def real_world_qa_score(target: str, prediction: str, multiple_choice: bool) -> bool:
    """Multiple choice among A to D, or a short answer compared after `normalise_answer` on both sides.

    ValueError where the target of a multiple-choice question is none of the letters, or where there is no target.
    """
    if not multiple_choice:
        return normalise_answer(prediction) == normalise_answer(true_answers(target)[0])
    if not isinstance(target, str) or target not in tuple("ABCD"):
        raise ValueError(f"The true option is {target!r}, which is none of A, B, C and D.")
    return "ABCD"[select_mc_option(prediction, "ABCD")] == target


def score_real_world(reply: str, row: Row) -> Scores:
    """`real_world_qa_score`; `B. a dog` is B where that option stands in the question, by edits it would be A."""
    lettered = row.metadata["question_type"] == "multiple_choice"
    got = parse_answer(reply)
    if lettered:
        options = dict(_OPTION.findall(row.annotation.get("question", "")))
        got = named_option(got, options) or got
    right = float(real_world_qa_score(row.metadata["answer"], got, lettered))
    readable = read_option(got, "ABCD")[1] if lettered else bool(got)
    return {"real_world_qa_score": right, "unreadable": float(not readable)}
