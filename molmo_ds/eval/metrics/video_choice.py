"""Multiple choice about videos: which letter a reply names, by the rule of each benchmark.

Source: mattw-ai2/robo_mm_olmo_gantry 6832f80, olmo/eval/evaluators.py and vqa.py.
MUIRBench and NExT-QA are read as MMMU is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from string import ascii_uppercase

from molmo_ds.eval.metrics.mmmu import read_choice
from molmo_ds.eval.row import Row, Scores

Reader = Callable[[str, Sequence[str]], str | None]  # (reply, options) -> letter
LETTERS = "ABCDE"
_LEADS = re.compile(r"(?:Best answer|Best option|Answer|Option):")  # holds capitals of its own


def first_letter(reply: str, options: Sequence[str]) -> str | None:
    """The first capital of A to E, wherever it stands (LongVideoBench)."""
    found = re.search(f"[{LETTERS}]", reply)
    return found[0] if found else None


def first_letter_after_lead(reply: str, options: Sequence[str]) -> str | None:
    """The first capital of A to E once `Answer:` and the like are dropped (Video-MME)."""
    return first_letter(_LEADS.sub("", reply), options)


def first_word(reply: str, options: Sequence[str]) -> str | None:
    """The first capital of A to E that is a word (Perception Test)."""
    found = re.search(rf"\b[{LETTERS}]\b", reply)
    return found[0] if found else None


def first_word_end(reply: str, options: Sequence[str]) -> str | None:
    """The first capital of A to E that ends a word (EgoSchema)."""
    found = re.search(rf"[{LETTERS}]\b", reply)
    return found[0] if found else None


def starts_with(reply: str, letter: str) -> bool:
    """Whether the reply starts with the letter, case ignored (MVBench, MLVU, TempCompass)."""
    return reply.strip().lower().startswith(letter.lower())


def score_letter(reply: str, row: Row, read: Reader) -> Scores:
    """`accuracy` and `unreadable`; a letter that cannot be read is drawn with the row's own generator.

    Raises ValueError where the true option has no letter.
    """
    options = row.annotation.get("options") or ()
    index = row.annotation.get("answer_index")
    named = ascii_uppercase[: len(options)]
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(named):
        raise ValueError(
            f"The true option has the index {index!r}; with {len(named)} options it is 0 to below that."
        )
    letter = read(reply, options)
    drawn = letter or row.random().choice(named)
    return {"accuracy": float(drawn == named[index]), "unreadable": float(letter is None)}


def score_video_mme(reply: str, row: Row) -> Scores:
    """`accuracy`: a reply without a letter is wrong; the reference leaves it out of the mean."""
    letter = first_letter_after_lead(reply, ())
    right = letter == ascii_uppercase[row.annotation["answer_index"]]
    return {"accuracy": float(right), "unreadable": float(letter is None)}


READERS: dict[str, Reader] = {
    "ego_schema": first_word_end,
    "long_video_bench": first_letter,
    "muir_bench": read_choice,
    "nextqa": read_choice,
    "perception_test": first_word,
    "video_mme": first_letter_after_lead,
}
