"""Multiple choice: which option a reply means.

Source: olmo/eval/vqa.py of allenai/molmo 793fa38, whose models answer by a letter, and of allenai/molmo2 f3cb108, whose
models answer by letter and text, which a short answer cuts off: the later rule looks at the beginning first. Where a
benchmark has figures of both, the later rule's is the headline and the earlier one's has the suffix `_reference`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from molmo_ds.eval.metrics.reply import edit_distance, parse_answer
from molmo_ds.eval.row import Row, Scores

_NAMED = re.compile(r"\(?([A-Za-z])[.:)]+\s*(.+)", re.S)  # a letter and what it stands for


def read_option(
    prediction: str, options: Sequence[str], beginnings: bool = False
) -> tuple[int, bool]:
    """(index of the option that is meant, whether the prediction says so).

    It says so where it equals an option or is part of one only; else the nearest option by edits is taken, the first of
    several. Raises ValueError when there is no option, or two are equal but for case and outer blanks.

    Args:
        beginnings: whether the only option that the prediction begins with, or the only one that begins with it, is
            looked for before, as in allenai/molmo2; it is said where no letter or digit follows it.
    """
    options = [option.strip().lower() for option in options]
    if not options:
        raise ValueError("A multiple-choice question needs options, and this one has none.")
    if len(set(options)) != len(options):
        raise ValueError(f"Options must differ in more than case: {options}.")
    prediction = prediction.strip().lower()
    if prediction in options:
        return options.index(prediction), True
    if beginnings:
        begun = [i for i, option in enumerate(options) if prediction.startswith(option)]
        if len(begun) == 1:
            rest = prediction[len(options[begun[0]]) :]
            return begun[0], not rest[:1].isalnum()
        begun = [i for i, option in enumerate(options) if option.startswith(prediction)]
        if len(begun) == 1:
            return begun[0], bool(prediction)
    containing = [i for i, option in enumerate(options) if prediction in option]
    if len(containing) == 1:
        return containing[0], bool(prediction)
    distances = [edit_distance(prediction, option) for option in options]
    return distances.index(min(distances)), False


def select_mc_option(prediction: str, options: Sequence[str]) -> int:
    """Index of the option that is meant."""
    return read_option(prediction, options)[0]


def multiple_choice_score(
    target: int, prediction: str, options: Sequence[str], beginnings: bool = False
) -> bool:
    """Whether the option that is meant has the index `target`; ValueError where no option has it."""
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < len(options):
        raise ValueError(
            f"The true option has the index {target!r}; with {len(options)} options it is 0 to below that."
        )
    return read_option(prediction, options, beginnings)[0] == target


def option_names(row: Row) -> list[str]:
    """What the options of a question are called: letters, or their own texts where they are shown without letters."""
    given = row.annotation.get("options")
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(
            f"The options are {given!r}; a multiple-choice question needs a list of them."
        )
    options = [str(option) for option in given]
    return options if row.annotation.get("unlabelled") else list(ascii_uppercase[: len(options)])


def named_option(prediction: str, options: Mapping[str, str]) -> str | None:
    """The letter of a reply that gives an option with its letter, as Molmo2 does; None for any other reply.

    By edits, "B. a dog" would be as near to A as to B.

    Args:
        options: text by letter.
    """
    named = _NAMED.fullmatch(prediction.strip())
    option = options.get(named[1].upper()) if named else None
    if option is None or named[2].strip(" .").lower() != option.strip(" .").lower():
        return None
    return named[1].upper()


def by_name(prediction: str, row: Row) -> str:
    """The letter alone of a reply that gives one of the row's options with its letter; else the reply as it is."""
    options = dict(zip(option_names(row), map(str, row.annotation["options"])))
    return named_option(prediction, options) or prediction


def score_choice(reply: str, row: Row) -> Scores:
    """`mc`: whether the true option is meant; `mc_reference` by the rule of allenai/molmo."""
    names = option_names(row)
    parsed = parse_answer(reply)
    got = by_name(parsed, row)
    index = row.annotation.get("answer_index")
    right = multiple_choice_score(index, got, names, beginnings=True)
    return {
        "mc": float(right),
        "mc_reference": float(multiple_choice_score(index, parsed, names)),
        "unreadable": float(not read_option(got, names, beginnings=True)[1]),
    }


def score_diagram(reply: str, row: Row) -> Scores:
    """AI2D's two figures: letters on filled boxes, or next to tinted ones; questions without letters are in both."""
    found = score_choice(reply, row)
    kinds = ("transparent", "opaque")
    if row.metadata.get("abc_label"):
        kinds = kinds[:1] if row.metadata.get("has_transparent_box") else kinds[1:]
    scores = {"unreadable": found["unreadable"]}
    for kind in kinds:
        scores[f"mc_ai2d_{kind}"] = found["mc"]
        scores[f"mc_ai2d_{kind}_reference"] = found["mc_reference"]
    return scores
