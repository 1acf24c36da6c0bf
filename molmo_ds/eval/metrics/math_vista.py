"""MathVista: an answer taken out of a reply, brought into the form of the true one, and compared as text.

Source: allenai/molmo 793fa38, olmo/eval/vqa.py and math_vista_utils.py. The reference passes the data set's
`precision`, a float, on to round(), which fails, so that every answer of type float is wrong there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from molmo_ds.eval.metrics.choice import named_option, read_option
from molmo_ds.eval.metrics.reply import edit_distance
from molmo_ds.eval.row import Row, Scores


def quick_extract(response: str, about: Mapping[str, Any]) -> str | None:
    """The answer where it is the whole reply; None where a judge has to take it out of a sentence."""
    if response == "" or (
        about["question_type"] == "multi_choice" and response in about["choices"]
    ):
        return response
    if about["answer_type"] in ("integer", "float"):
        return _as_number(response, about["answer_type"])
    return None


def extract(response: str, about: Mapping[str, Any]) -> str:
    """The answer without a judge: the text of the option that is meant, a number, or the reply itself."""
    if about["question_type"] == "multi_choice":
        choices = about["choices"]
        return choices[read_option(response, ascii_uppercase[: len(choices)])[0]]
    if about["answer_type"] in ("integer", "float"):
        return _as_number(response, about["answer_type"]) or response
    return response


def said(response: str, about: Mapping[str, Any]) -> str:
    """As `extract`, but an option's text is that option, and `B. 3 cm` is B."""
    found = quick_extract(response, about)
    if found is not None or about["question_type"] != "multi_choice":
        return response if found is None else found
    return about["choices"][_option_meant(response, about["choices"])[0]]


def _option_meant(response: str, choices: Sequence[str]) -> tuple[int, bool]:
    """As `read_option`, of the letters of the choices."""
    letters = ascii_uppercase[: len(choices)]
    named = named_option(response, dict(zip(letters, choices))) or response
    return read_option(named, letters, beginnings=True)


def normalise(extraction: str, about: Mapping[str, Any], reference: bool = False) -> str | None:
    """An extracted answer in the form of the true one, None where it has none; `reference`: with its fault."""
    if about["question_type"] == "multi_choice":
        return _choice(extraction, about["choices"])
    try:
        if about["answer_type"] == "integer":
            return str(int(float(extraction)))
        if about["answer_type"] == "float":
            precision = about["precision"]
            if reference and isinstance(precision, float):
                return None
            return str(round(float(extraction), None if precision is None else int(precision)))
    except (ValueError, OverflowError):
        return None
    return extraction


def is_right(extraction: str, about: Mapping[str, Any], reference: bool = False) -> bool:
    """Whether an extracted answer is the true one."""
    return normalise(extraction, about, reference) == about["answer"]


def score_math_vista(reply: str, row: Row) -> Scores:
    """`score`, and `score_reference` as allenai/molmo reads and with its fault, both without a judge."""
    about = row.metadata
    response = reply.strip()
    found = said(response, about)
    if about["question_type"] == "multi_choice":
        choices = about["choices"]
        readable = response in choices or _option_meant(response, choices)[1]
    else:
        readable = bool(normalise(found, about))
    return {
        "score": float(is_right(found, about)),
        "score_reference": float(is_right(extract(response, about), about, reference=True)),
        "unreadable": float(not readable),
    }


def _as_number(text: str, kind: str) -> str | None:
    try:
        return str(int(text)) if kind == "integer" else str(float(text))
    except ValueError:
        return None


def _choice(extraction: str, choices: Sequence[str]) -> str:
    """The option of a letter (alone, or before the first colon), else the option that is nearest by edits."""
    extraction = extraction.strip()
    letter = re.search(r"([a-zA-Z]):", extraction)
    if letter:
        extraction = letter.group(1).upper()
    letters = ascii_uppercase[: len(choices)]
    if len(extraction) == 1 and extraction in letters:
        return choices[letters.index(extraction)]
    distances = [edit_distance(extraction, choice) for choice in choices]
    return choices[distances.index(min(distances))]
