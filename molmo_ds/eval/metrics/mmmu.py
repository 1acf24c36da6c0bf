"""MMMU: its own reading of letters and of open answers.

Source: allenai/molmo 793fa38, olmo/eval/vqa.py and mmmu_eval_utils.py, after MMMU's own code; allenai/molmo2 f3cb108,
where a letter before a bracket, a full stop or a colon is read too.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from molmo_ds.eval.metrics.choice import named_option
from molmo_ds.eval.metrics.reply import parse_answer, true_answers
from molmo_ds.eval.row import Row, Scores


def mmmu_score(
    target: str | Sequence[str], response: str, options: Sequence[str] | None, rng: Any = random
) -> float:
    """MMMU's own parsing; `options` None = open question. An unreadable choice is drawn with `rng.choice`.

    Empty options do not count. ValueError where there is no answer, or one that is the letter of no option.
    """
    answers = true_answers(target)
    if options is None:
        return float(_open_answer_matches(answers, response))
    named = _named(options)
    impossible = next((answer for answer in answers if answer not in named), None)
    if impossible is not None:
        raise ValueError(
            f"The true option is {impossible!r}, and the options are called {', '.join(named) or 'none'}."
        )
    return float((read_choice(response, options) or rng.choice(list(named))) in answers)


FORMS = ("({})", " {} ")  # of a letter in a reply
MARKED_FORMS = ("({})", "{})", "{}.", "{}:", " {} ")  # of allenai/molmo2


def read_choice(response: str, options: Sequence[str], forms: Sequence[str] = FORMS) -> str | None:
    """The letter that a reply names last, in brackets, alone or by its option's text; None if there is none.

    Args:
        forms: of a letter; the first that the reply has counts.
    """
    response = between_blanks(response)
    named = _named(options)
    for pattern in forms:
        found = {letter: response.rfind(pattern.format(letter)) for letter in named}
        if max(found.values(), default=-1) >= 0:
            return max(found, key=found.get)
    if len(response.split()) > 5:
        found = {letter: response.lower().rfind(text.lower()) for letter, text in named.items()}
        if max(found.values(), default=-1) >= 0:
            return max(found, key=found.get)
    return None


def letter_said(response: str, options: Sequence[str]) -> str | None:
    """As `read_choice` with MARKED_FORMS, or the letter before its own option's text, as in `b. a dog`."""
    return read_choice(response, options, MARKED_FORMS) or named_option(response, _named(options))


def between_blanks(text: str) -> str:
    """A text without the marks at its ends, a blank before and after it, so that a word is found as ` word `."""
    for mark in ",.!?;:'":
        text = text.strip(mark)
    return f" {text} "


def score_mmmu(reply: str, row: Row) -> Scores:
    """`mmmu_score`; in `mmmu_score_reference`, allenai/molmo's, answers given as lists and `B. a dog` stay unread.

    A choice that cannot be read is drawn with a generator of the row's own.
    """
    got = parse_answer(reply)
    options = row.annotation.get("options")
    if options is None:
        right = mmmu_score(row.annotation.get("answers"), got, None)
        raw = mmmu_score(row.metadata["answer"], got, None)
        return {"mmmu_score": right, "mmmu_score_reference": raw, "unreadable": float(not got)}
    letter = ascii_uppercase[row.annotation["answer_index"]]
    raw = mmmu_score(letter, got, options, row.random())
    said = letter_said(got, options)
    right = raw if said is None else float(said == letter)
    return {
        "mmmu_score": right,
        "mmmu_score_reference": raw,
        "unreadable": float(said is None),
    }


def _named(options: Sequence[str]) -> dict[str, str]:
    texts = [option for option in options if option]
    return dict(zip(ascii_uppercase, texts))


# each looks through the whole text, so that MMMU reads 2,000 as 2000 and as 0, and 1e4 as 10000 and as 4
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")


def _comparable(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _shortest(tails: Sequence[str]) -> str:
    """The shortest, the first of several; as in MMMU's code, an empty one gives way to whatever comes after it."""
    shortest = ""
    for tail in tails:
        if not shortest or len(tail) < len(shortest):
            shortest = tail
    return shortest


def _open_answer_matches(targets: Sequence[str], response: str) -> bool:
    response = response.strip().strip(".").lower()
    sentences = re.split(r"\.\s(?=[A-Z])|\n", response)
    parts = []
    for number, sentence in enumerate(sentences):
        words = (*_INDICATORS, "=") if number == len(sentences) - 1 else _INDICATORS
        shortest = _shortest(
            [sentence.split(word)[-1].strip() for word in words if word in sentence]
        )
        if shortest not in ("", ":", ",", ".", "!", "?", ";", "'"):
            parts.append(shortest)
    said: list[str | float] = []
    for part in parts or [response]:
        said.extend(_comparable(part))
        for pattern in _NUMBERS:
            for text in re.findall(pattern, part):
                said.extend(_comparable(text))
    wanted = [value for target in targets for value in _comparable(target)]
    return any(
        any(isinstance(s, str) and w in s for s in said) if isinstance(w, str) else w in said
        for w in wanted
    )
