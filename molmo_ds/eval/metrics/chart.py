"""Charts: relaxed correctness within 5 %, exact match, and the lenient rule of the reference's later code.

Source: allenai/molmo 793fa38 and, for the lenient rule, allenai/molmo2 f3cb108, both olmo/eval/vqa.py. `2%` against `2`
is wrong under the relaxed rule, as in the reference.
"""

from __future__ import annotations

import re

from molmo_ds.eval.metrics.reply import parse_answer, true_answers
from molmo_ds.eval.row import Row, Scores, answers

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_FIRST_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")


def exact_match(target: str, prediction: str) -> bool:
    """Equal but for case."""
    return prediction.lower() == target.lower()


def relaxed_correctness(target: str, prediction: str) -> bool:
    """Within 5 % where both are numbers (`5%` is 0.05) and the target is not 0; else equal but for case."""
    wanted, got = _number(target), _number(prediction)
    if got is not None and wanted:
        return abs(got - wanted) / abs(wanted) <= 0.05
    return exact_match(target, prediction)


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def lenient_correctness(target: str, prediction: str) -> bool:
    """Whether the first number of a sentence, or a hundredth of it, is within 5 % of the target.

    Number words become digits even inside of words, so that `seventeen` is right for 7; a target that is no number
    must stand somewhere in the prediction, and so must every item of a list in square brackets. Never a headline.
    """
    wanted = _behind_answer(target)
    got = _behind_answer(prediction).removesuffix(".")
    number = _plain_number(wanted)
    if number is None:
        items = wanted.replace("[", "").replace("]", "").split(",") if "[" in wanted and "," in wanted else [wanted]
        return bool(got) and all(item.strip() in got for item in items)
    got = got.replace(",", "")
    for digit, word in enumerate(_DIGITS):
        got = got.replace(word, str(digit))
    found = _FIRST_NUMBER.search(got)
    if found is None:
        return False
    value = float(found.group())
    return any(abs(number - one) / (abs(number) or 1) <= 0.05 for one in (value, value / 100))


def score_chart(reply: str, row: Row) -> Scores:
    """The best of the true answers under the three rules; for people's and the program's questions also apart."""
    got = parse_answer(reply)
    true = true_answers(answers(row))
    scores = {
        "relaxed_correctness": float(max(relaxed_correctness(answer, got) for answer in true)),
        "scifi_relaxed_correctness": float(max(lenient_correctness(answer, got) for answer in true)),
        "em": float(max(exact_match(answer, got) for answer in true)),
    }
    human = row.metadata.get("is_human")
    if human is not None:
        scores |= {f"{name}_{'human' if human else 'aug'}": value for name, value in scores.items()}
    return {**scores, "unreadable": float(not got)}


def _behind_answer(text: str) -> str:
    text = text.lower().strip()
    return text.split("answer:")[1].strip() if "answer:" in text else text


def _plain_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
