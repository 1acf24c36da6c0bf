"""Text in pictures: ANLS, the share of a text that need not be edited, and exact match.

Source: allenai/molmo 793fa38, olmo/eval/vqa.py. Blanks are not squeezed, as the competition's rules have it; VLMEvalKit
squeezes them.
"""

from __future__ import annotations

from molmo_ds.eval.metrics.chart import exact_match
from molmo_ds.eval.metrics.reply import edit_distance, parse_answer, true_answers
from molmo_ds.eval.row import Row, Scores


def anls(target: str, prediction: str) -> float:
    """1 - edit distance / longer length, 0 from half on. ValueError when both are empty."""
    if not (target or prediction):
        raise ValueError("ANLS of two empty strings is not defined.")
    share = edit_distance(target.lower(), prediction.lower()) / max(len(target), len(prediction))
    return 1 - share if share < 0.5 else 0.0


def score_anls(reply: str, row: Row) -> Scores:
    """The best of the true answers; ValueError if all are empty: no reply is near an empty text."""
    got = parse_answer(reply)
    true = [answer for answer in true_answers(row.answers) if answer]
    if not true:
        raise ValueError("The true answer is empty, and no reply is near an empty text.")
    return {
        "anls": max(anls(answer, got) for answer in true),
        "em": float(max(exact_match(answer, got) for answer in true)),
        "unreadable": float(not got),
    }


def score_exact(reply: str, row: Row) -> Scores:
    """Exact match alone."""
    got = parse_answer(reply)
    return {
        "em": float(max(exact_match(answer, got) for answer in true_answers(row.answers))),
        "unreadable": float(not got),
    }
