"""Charts: relaxed correctness within 5 %, exact match, and the lenient rule of the reference's later code.

Source of the rules: allenai/molmo 793fa38 and, for the lenient one, allenai/molmo2 f3cb108, both olmo/eval/vqa.py.
`2%` against `2` is wrong under the relaxed rule, as in the reference.
"""

from __future__ import annotations

import re

from molmo_ds.eval.metrics.reply import parse_answer, true_answers
from molmo_ds.eval.row import Row, Scores

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_WORDS)}


def exact_match(target: str, prediction: str) -> bool:
    """Equal but for case."""
    return prediction.lower() == target.lower()


def relaxed_correctness(target: str, prediction: str) -> bool:
    """Within 5 % where both are numbers (`5%` is 0.05) and the target is not 0; else equal but for case."""
    wanted = _number(target)
    got = _number(prediction)
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
    true = _after_label(target)
    said = _after_label(prediction).removesuffix(".")
    wanted = _plain_number(true)
    if wanted is None:
        return bool(said) and all(item in said for item in _items(true))
    value = _first_number(said)
    if value is None:
        return False
    unit = abs(wanted) or 1  # an infinite one makes both shares NaN, which is within nothing
    return abs(wanted - value) / unit <= 0.05 or abs(wanted - value / 100) / unit <= 0.05


def score_chart(reply: str, row: Row) -> Scores:
    """The best of the true answers under the three rules; for people's and the program's questions also apart."""
    got = parse_answer(reply)
    true = true_answers(row.answers)
    scores = {
        "relaxed_correctness": float(max(relaxed_correctness(answer, got) for answer in true)),
        "scifi_relaxed_correctness": float(
            max(lenient_correctness(answer, got) for answer in true)
        ),
        "em": float(max(exact_match(answer, got) for answer in true)),
    }
    human = row.metadata.get("is_human")
    if human is not None:
        scores |= {f"{name}_{'human' if human else 'aug'}": value for name, value in scores.items()}
    return {**scores, "unreadable": float(not got)}


def _after_label(text: str) -> str:
    """What follows the first `answer:` and stands before the next, in lower case; the whole text without one."""
    parts = [part.strip() for part in text.lower().split("answer:")]
    return parts[min(1, len(parts) - 1)]


def _items(target: str) -> list[str]:
    """The items of a list in square brackets, or the target itself."""
    if not ("[" in target and "," in target):
        return [target]
    return [item.strip() for item in re.sub(r"[\[\]]", "", target).split(",")]


def _first_number(text: str) -> float | None:
    """The first number, commas left out and number words read as digits; a sign counts with decimals only."""
    digits = re.sub(
        "|".join(_NUMBER_WORDS), lambda word: _NUMBER_WORDS[word.group()], text.replace(",", "")
    )
    found = re.search(r"(?:[-+]?\d*\.)?\d+", digits)
    return float(found.group()) if found else None


def _plain_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
