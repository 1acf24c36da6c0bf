"""Multiple choice about videos: which letter a reply names, by the rule of each benchmark.

Source: allenai/molmo2 f3cb108 and mattw-ai2/robo_mm_olmo_gantry 6832f80, olmo/eval/evaluators.py and vqa.py. NExT-QA is
read as MMMU is, and a letter may stand before a full stop. MuirBench, MMIU and BLINK have allenai/molmo2's rule; the
fork's, in which only a colon may follow a letter, has the suffix `_fork`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from string import ascii_uppercase

from molmo_ds.eval.metrics.choice import named_option
from molmo_ds.eval.metrics.mmmu import FORMS, MARKED_FORMS, between_blanks, read_choice
from molmo_ds.eval.metrics.reply import parse_answer
from molmo_ds.eval.row import Row, Scores

Reader = Callable[[str, Sequence[str]], str | None]  # (reply, options) -> letter
LETTERS = "ABCDE"
OF_FOUR = "ABCD"
_STARTS = re.compile(r"[A-Za-z]\b")  # an answer that is a letter, maybe with more behind it
# words before a letter that hold capitals of their own
_BEST = re.compile(r"Best (?:answer|option):")
_LEADS = re.compile(r"(?:Best answer|Best option|Answer|Option):")


def first_letter(reply: str, options: Sequence[str]) -> str | None:
    """The first capital of A to E once `Best answer:` is dropped, wherever it stands (LongVideoBench)."""
    return _first(f"[{LETTERS}]", _BEST.sub("", reply))


def first_letter_after_lead(reply: str, options: Sequence[str]) -> str | None:
    """The first capital of A to D once `Answer:` and the like are dropped (Video-MME).

    The reference lacks a comma between `Best answer:` and `Best option:`, so that it reads a B there.
    """
    return _first(f"[{OF_FOUR}]", _LEADS.sub("", reply))


def first_word(reply: str, options: Sequence[str]) -> str | None:
    """The first capital of A to D that is a word (Perception Test)."""
    return _first(rf"\b[{OF_FOUR}]\b", reply)


def _first(pattern: str, reply: str) -> str | None:
    found = re.search(pattern, reply)
    return found[0] if found else None


def first_named(reply: str, options: Sequence[str]) -> str | None:
    """The option that is named first, in brackets or before a blank or a full stop (EgoSchema).

    In a reply of more than five words without such a letter it is that whose text stands first. Of a name that comes
    more than once the last place counts.
    """
    reply = between_blanks(reply)
    names = [(letter, form.format(letter)) for form in ("({})", "{} ", "{}.") for letter in LETTERS]
    places = [(reply.rfind(name), letter) for letter, name in names if name in reply]
    if not places and len(reply.split()) > 5:
        texts = [text.strip().lower() for text in options]
        reply = reply.lower()
        places = [(reply.rfind(text), name) for name, text in zip(LETTERS, texts) if text in reply]
    return min(places)[1] if places else None


def last_named(reply: str, options: Sequence[str]) -> str | None:
    """As `read_choice`, or the last letter before a full stop (NExT-QA)."""
    return read_choice(reply, options, (*FORMS, "{}."))


def last_named_or_colon(reply: str, options: Sequence[str]) -> str | None:
    """As `read_choice`, or the last letter before a colon (MuirBench in the fork)."""
    return read_choice(reply, options, (*FORMS, "{}:"))


def last_marked(reply: str, options: Sequence[str]) -> str | None:
    """The last letter in brackets, else before a bracket, a full stop or a colon, else as `read_choice`."""
    return read_choice(reply, options, MARKED_FORMS)


def starts_with(reply: str, letter: str) -> bool:
    """Whether the reply starts with the letter, case ignored (MVBench, MLVU, TempCompass)."""
    return reply.strip().lower().startswith(letter.lower())


def asked_options(row: Row) -> Sequence[str]:
    """The options' texts: of the annotation, or of the record where they are part of the question's text."""
    return row.annotation.get("options") or row.metadata.get("options") or ()


def true_letter(row: Row) -> str:
    """The letter of the true option; ValueError where it has none."""
    index = row.annotation.get("answer_index")
    if index is None:
        given = row.annotation.get("answer")
        if not isinstance(given, str) or not re.match(r"[A-Z]\b", given.strip()):
            raise ValueError(f"The true answer is {given!r}; it is the letter of an option.")
        return given.strip()[0]
    named = ascii_uppercase[: len(asked_options(row))]
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(named):
        raise ValueError(
            f"The true option has the index {index!r}; with {len(named)} options it is 0 to below that."
        )
    return named[index]


def score_letter(
    reply: str, row: Row, read: Reader, name: str = "accuracy", guess: bool = True
) -> Scores:
    """`score_named` of the answer in the reply: what follows `Answer:`, else its commonest line."""
    return score_named(parse_answer(reply), row, read, name, guess)


def score_marked(reply: str, row: Row, name: str) -> Scores:
    """`name` and `name`_fork: a letter as MuirBench is read, in allenai/molmo2 and in the fork."""
    scores = score_letter(reply, row, last_marked, name)
    fork = score_letter(reply, row, last_named_or_colon, name)
    return {**scores, f"{name}_fork": fork[name]}


def score_named(
    reply: str, row: Row, read: Reader, name: str = "accuracy", guess: bool = True
) -> Scores:
    """`name` and `unreadable`; a letter that cannot be read is drawn with the row's own generator, or wrong.

    `B. a dog` says B where that is the option's text, though some readers, as the reference's, see no letter there.
    Raises ValueError where the true option has no letter.
    """
    options = asked_options(row)
    right = true_letter(row)
    letter = read(reply, options) or named_option(reply, dict(zip(ascii_uppercase, options)))
    drawn = letter
    if letter is None and guess:
        drawn = row.random().choice(ascii_uppercase[: len(options)] or LETTERS)
    return {name: float(drawn == right), "unreadable": float(letter is None)}


def score_start(reply: str, row: Row, name: str = "em_start") -> Scores:
    """Whether the answer in the reply starts with the true letter, case ignored: "a dog" is A, as in the reference."""
    got = parse_answer(reply)
    right = starts_with(got, true_letter(row))
    return {name: float(right), "unreadable": float(not _STARTS.match(got))}


def score_fgqa(reply: str, row: Row) -> Scores:
    """`accuracy`: whether the reply itself starts with the true letter, case ignored."""
    right = starts_with(reply, true_letter(row))
    return {"accuracy": float(right), "unreadable": float(not _STARTS.match(reply.strip()))}


def in_parts(scores: Scores, *parts: str) -> Scores:
    """The score `all` under the names of the parts too to which a row belongs."""
    return {**scores, **dict.fromkeys(parts, scores["all"])}


def score_video_mme(reply: str, row: Row) -> Scores:
    """`all` and each duration: a reply without a letter is wrong; under `_reference` it is left out of the mean."""
    letter = first_letter_after_lead(reply, ())
    duration = row.metadata["duration"]
    parts = [duration, *(["medium_long"] if duration != "short" else [])]
    right = float(letter == true_letter(row))
    scores = in_parts({"all": right}, *parts)
    if letter is not None:
        scores |= {f"{part}_reference": right for part in ("all", *parts)}
    return {**scores, "unreadable": float(letter is None)}


def score_long_video_bench(reply: str, row: Row) -> Scores:
    """`all`, and the same for the group of lengths: duration_15, _60, _600, _3600 seconds."""
    scores = score_named(reply, row, first_letter, "all")
    return in_parts(scores, f"duration_{row.metadata['duration_group']}")


def score_lvbench(reply: str, row: Row) -> Scores:
    """`all`, and the same for each type of question that a row has."""
    types = row.metadata.get("question_types") or ()
    return in_parts(score_start(reply, row, "all"), *(f"all_{kind}" for kind in types))


def score_mmiu(reply: str, row: Row) -> Scores:
    """`all` over the questions whose answer is one of the options; `all_reference` counts the others as wrong."""
    got = parse_answer(reply)
    options = asked_options(row)
    if row.annotation.get("answer") not in ascii_uppercase[: len(options)]:
        return {"all_reference": 0.0, "unreadable": float(last_marked(got, options) is None)}
    scores = score_named(got, row, last_marked, "all")
    return {**scores, "all_reference": scores["all"]}


READERS: dict[str, Reader] = {
    "ego_schema": first_named,
    "long_video_bench": first_letter,
    "muir_bench": last_named_or_colon,
    "nextqa": last_named,
    "perception_test": first_word,
    "video_mme": first_letter_after_lead,
}
