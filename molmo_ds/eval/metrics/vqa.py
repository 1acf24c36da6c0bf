"""Answers of several people: the VQA challenge's agreement, the reference's and the official, and A-OKVQA's own.

Source: allenai/molmo 793fa38, olmo/eval/vqa.py; the official mean is that of visualqa.org's evaluation code.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from molmo_ds.eval.metrics.reply import parse_answer, true_answers
from molmo_ds.eval.row import Row, Scores

ENOUGH = 3  # people who give an answer make it wholly right
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't that's
there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's
where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're
you've somebody'll somebody's someone'd someone'll someone's something'd something'll couldn't've hadn't've he'd've
it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've there'd've they'd've we'd've
who'd've wouldn't've y'all'll y'all'd've you'd've 'ow's'at
"""


def _without_one_apostrophe(word: str) -> list[str]:
    at = [i for i, letter in enumerate(word) if letter == "'"]
    return [word[:i] + word[i + 1 :] for i in at]


# of the challenge's list, which repairs neither "shes" nor "shell"
_REPAIRS = {
    wrong: right for right in _CONTRACTIONS.split() for wrong in _without_one_apostrophe(right)
} | {"somebody'd": "somebodyd"}


@functools.lru_cache(maxsize=1 << 16)  # people's answers are few and come again and again
def normalise_answer(text: str) -> str:
    """The VQA challenge's clean-up: punctuation, articles, number words, contractions."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    out = text
    digits_comma = re.search(r"\d,\d", text) is not None
    for mark in _PUNCTUATION:
        drop = f"{mark} " in text or f" {mark}" in text or digits_comma
        out = out.replace(mark, "" if drop else " ")
    # the reference passes a flag where the count goes; the flag is 32
    out = re.sub(r"\.(?!\d)", "", out, count=32)
    numbers = {"none": "0"} | {word: str(n) for n, word in enumerate(_NUMBERS)}
    words = [numbers.get(word, word) for word in out.lower().split()]
    return " ".join(_REPAIRS.get(word, word) for word in words if word not in ("a", "an", "the"))


def _agreement(equal: int) -> float:
    return min(1.0, equal / ENOUGH)


def vqa_score(target: str | Sequence[str], prediction: str) -> float:
    """Answers that equal the prediction / 3, at most 1; a single string must equal it and is not cleaned up.

    ValueError where there is no answer.
    """
    answers = true_answers(target)
    prediction = normalise_answer(prediction)
    if isinstance(target, str):
        return float(prediction == target)
    return _agreement([normalise_answer(answer) for answer in answers].count(prediction))


def a_okvqa_score(target: str | Sequence[str], prediction: str) -> float:
    """As `vqa_score` with nothing cleaned up but case and outer blanks; a single string is a list of one."""
    given = [answer.strip().lower() for answer in true_answers(target)]
    return _agreement(given.count(prediction.strip().lower()))


def vqa_official(answers: Sequence[str], prediction: str) -> float:
    """The challenge's score, which the test servers give: the mean over leaving out one person at a time.

    It differs from `vqa_score` where exactly three of ten agree with the prediction: 0.9 instead of 1.
    """
    given = [normalise_answer(one) for one in true_answers(answers)]
    return _leave_one_out(given.count(normalise_answer(prediction)), len(given))


def _leave_one_out(equal: int, people: int) -> float:
    # the mean over the people, of whom so many agree with the prediction
    without_one = equal * min(1.0, (equal - 1) / 3)  # an agreeing person is left out
    return (without_one + (people - equal) * min(1.0, equal / 3)) / people


@functools.lru_cache(maxsize=1 << 12)  # a question is scored with its reply and with every guess
def _cleaned(answers: object) -> list[str]:
    return [normalise_answer(one) for one in true_answers(answers)]


def score_answers(reply: str, row: Row) -> Scores:
    """`vqa_score`, the reference's, and `vqa_official` where several people answered.

    Of fewer than three answers, as only a user's own data have, each is right: a third of a point would be the most.
    """
    true = row.answers
    got = parse_answer(reply)
    # vqa_score leaves a single text as it is, so that `Yes` could never be right
    if isinstance(true, str):
        return {"vqa_score": vqa_score(normalise_answer(true), got), "unreadable": float(not got)}
    answer = normalise_answer(got)
    try:
        given = _cleaned(true)
    except TypeError:  # an answer that cannot be hashed is no text
        true_answers(true)
        raise
    if len(given) < ENOUGH:
        return {"vqa_score": float(answer in given), "unreadable": float(not got)}
    equal = given.count(answer)
    return {
        "vqa_score": _agreement(equal),
        "vqa_official": _leave_one_out(equal, len(given)),
        "unreadable": float(not got),
    }


def score_direct(reply: str, row: Row) -> Scores:
    """A-OKVQA's direct answers; of fewer than three each is right, as for `score_answers`."""
    got = parse_answer(reply)
    right = a_okvqa_score(row.answers, got)
    if right and len(true_answers(row.answers)) < ENOUGH:
        right = 1.0
    return {"a_okvqa_score": right, "unreadable": float(not got)}
