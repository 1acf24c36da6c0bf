"""RealWorldQA: a letter, or a short answer.

Source: olmo/eval/vqa.py of allenai/molmo 793fa38, and of allenai/molmo2 f3cb108 for the letter of a longer reply.
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
    """`real_world_qa_score`; `B. a dog` is B, which allenai/molmo, in `_reference`, may read as A."""
    lettered = row.metadata["question_type"] == "multiple_choice"
    got = parse_answer(reply)
    target = row.metadata["answer"]
    reference = float(real_world_qa_score(target, got, lettered))
    right = reference
    readable = bool(got)
    if lettered:
        options = dict(_OPTION.findall(row.annotation.get("question", "")))
        index, readable = read_option(named_option(got, options) or got, "ABCD", beginnings=True)
        right = float("ABCD"[index] == target)
    return {
        "real_world_qa_score": right,
        "real_world_qa_score_reference": reference,
        "unreadable": float(not readable),
    }
