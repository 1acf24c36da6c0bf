"""Scores of one answer, with the reference's rules, its oddities included: figures are only comparable so.

Source: allenai/molmo 793fa38, olmo/eval. A score is a float or a bool, 1 is best.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_TO_TWENTY = [*_NUMBERS, "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"]
_TO_TWENTY += ["nineteen", "twenty"]
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't she's should've shouldn't that's
there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's
where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're
you've somebody'll somebody's someone'd someone'll someone's something'd something'll couldn't've hadn't've he'd've
it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've there'd've they'd've we'd've
who'd've wouldn't've y'all'll y'all'd've you'd've 'ow's'at
"""


def _without_one_apostrophe(word: str) -> list[str]:
    at = [i for i, letter in enumerate(word) if letter == "'"]
    return [word[:i] + word[i + 1 :] for i in at]


_REPAIRS = {wrong: right for right in _CONTRACTIONS.split() for wrong in _without_one_apostrophe(right)} | {
    "somebody'd": "somebodyd"
}


def normalise_answer(text: str) -> str:
    """The VQA challenge's clean-up: punctuation, articles, number words, contractions."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    out = text
    digits_comma = re.search(r"\d,\d", text) is not None
    for mark in _PUNCTUATION:
        drop = f"{mark} " in text or f" {mark}" in text or digits_comma
        out = out.replace(mark, "" if drop else " ")
    out = re.sub(r"\.(?!\d)", "", out, count=32)  # the reference passes a flag where the count goes; the flag is 32
    numbers = {"none": "0"} | {word: str(n) for n, word in enumerate(_NUMBERS)}
    words = [numbers.get(word, word) for word in out.lower().split()]
    return " ".join(_REPAIRS.get(word, word) for word in words if word not in ("a", "an", "the"))


def true_answers(target: object) -> list[str]:
    """The answers of an annotation as a list; ValueError where there is none, since nothing could be right then."""
    answers = [target] if isinstance(target, str) else target
    if not isinstance(answers, list | tuple) or not answers:
        raise ValueError(f"The true answer is {target!r}; a score needs a text or a list of at least one text.")
    wrong = [answer for answer in answers if not isinstance(answer, str)]
    if wrong:
        raise ValueError(f"Among the true answers is {wrong[0]!r}; write every answer as a text.")
    return list(answers)


def _agreement(answer: str, given: list[str]) -> float:
    return min(1.0, given.count(answer) / 3)


def vqa_score(target: str | Sequence[str], prediction: str) -> float:
    """Answers that equal the prediction / 3, at most 1; a single string must equal it and is not cleaned up.

    ValueError where there is no answer.
    """
    answers = true_answers(target)
    prediction = normalise_answer(prediction)
    if isinstance(target, str):
        return float(prediction == target)
    return _agreement(prediction, [normalise_answer(answer) for answer in answers])


def a_okvqa_score(target: str | Sequence[str], prediction: str) -> float:
    """As `vqa_score` with nothing cleaned up but case and outer blanks; a single string is a list of one."""
    return _agreement(prediction.strip().lower(), [answer.strip().lower() for answer in true_answers(target)])


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


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: insertions, deletions and replacements that turn a into b."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    return row[-1]


def anls(target: str, prediction: str) -> float:
    """1 - edit distance / longer length, 0 from half on. ValueError when both are empty."""
    if not (target or prediction):
        raise ValueError("ANLS of two empty strings is not defined.")
    share = edit_distance(target.lower(), prediction.lower()) / max(len(target), len(prediction))
    return 1 - share if share < 0.5 else 0.0


def select_mc_option(prediction: str, options: Sequence[str]) -> int:
    """Index of the option that is meant: equal, else the only one that contains it, else the nearest by edits.

    ValueError when there is no option, or two are equal but for case and outer blanks.
    """
    options = [option.strip().lower() for option in options]
    if not options:
        raise ValueError("A multiple-choice question needs options, and this one has none.")
    if len(set(options)) != len(options):
        raise ValueError(f"Options must differ in more than case: {options}.")
    prediction = prediction.strip().lower()
    if prediction in options:
        return options.index(prediction)
    containing = [i for i, option in enumerate(options) if prediction in option]
    if len(containing) == 1:
        return containing[0]
    distances = [edit_distance(prediction, option) for option in options]
    return distances.index(min(distances))


def multiple_choice_score(target: int, prediction: str, options: Sequence[str]) -> bool:
    """Whether the option that is meant has the index `target`; ValueError where no option has it."""
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < len(options):
        raise ValueError(
            f"The true option has the index {target!r}; with {len(options)} options it is 0 to below that."
        )
    return select_mc_option(prediction, options) == target


def real_world_qa_score(target: str, prediction: str, multiple_choice: bool) -> bool:
    """Multiple choice among A to D, or a short answer compared after `normalise_answer` on both sides.

    ValueError where the target of a multiple-choice question is none of the letters, or where there is no target.
    """
    if not multiple_choice:
        return normalise_answer(prediction) == normalise_answer(true_answers(target)[0])
    if not isinstance(target, str) or target not in tuple("ABCD"):
        raise ValueError(f"The true option is {target!r}, which is none of A, B, C and D.")
    return "ABCD"[select_mc_option(prediction, "ABCD")] == target


def parse_answer(text: str) -> str:
    """The answer in a reply: behind its first `Answer:` up to the next, else its commonest line."""
    if "Answer:" in text:
        return text.split("Answer:")[1].strip()
    if "\n" in text.strip():
        lines = [" ".join(line.split()) for line in text.strip().split("\n")]
        return max(lines, key=lines.count)
    return " ".join(text.split())


def point_count(prediction: str) -> int | None:
    """The last word in digits or words to twenty, else the digits after the last `a total of` of the first line.

    None where there is no number: as in the reference, `There are none.` has none.
    """
    text = prediction.strip().lower().rstrip(".").strip()
    words = text.split()
    if not words:
        return None
    number = _whole_number(words[-1])
    if number is None and words[-1] in _TO_TWENTY:
        number = _TO_TWENTY.index(words[-1])
    if number is None:
        total = re.match(r".*a total of ([0-9]+)", text)
        number = _whole_number(total.group(1)) if total else None
    return number


def _whole_number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def point_count_scores(prediction: str, count: int) -> dict[str, float]:
    """`valid` (a number was given), `correct` and `close` (off by at most 1).

    ValueError where the true count is no whole number of at least 0.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"The true count is {count!r}; it is a whole number of at least 0.")
    got = point_count(prediction)
    valid = got is not None
    return {
        "valid": float(valid),
        "correct": float(valid and got == count),
        "close": float(valid and abs(got - count) <= 1),
    }


def mmmu_score(target: str | Sequence[str], response: str, options: Sequence[str] | None, rng: Any = random) -> float:
    """MMMU's own parsing; `options` None = open question. An unreadable choice is drawn with `rng.choice`.

    Empty options do not count. ValueError where there is no answer, or one that is the letter of no option.
    """
    answers = true_answers(target)
    if options is None:
        return float(_open_answer_matches(answers, response))
    texts = [option for option in options if option]
    letters = [chr(ord("A") + i) for i in range(len(texts))]
    impossible = next((answer for answer in answers if answer not in letters), None)
    if impossible is not None:
        raise ValueError(
            f"The true option is {impossible!r}, and the options are called {', '.join(letters) or 'none'}."
        )
    return float(_parse_choice(response, dict(zip(letters, texts)), rng) in answers)


def _parse_choice(response: str, options: dict[str, str], rng: Any) -> str:
    for mark in ",.!?;:'":
        response = response.strip(mark)
    response = f" {response} "
    for pattern in ("({})", " {} "):
        found = {letter: response.rfind(pattern.format(letter)) for letter in options}
        found = {letter: at for letter, at in found.items() if at >= 0}
        if found:
            return max(found, key=found.get)
    if len(response.split()) > 5:
        found = {letter: response.lower().rfind(text.lower()) for letter, text in options.items() if text}
        found = {letter: at for letter, at in found.items() if at >= 0}
        if found:
            return max(found, key=found.get)
    return rng.choice(list(options))


_NUMBER = r"-?\b\d{1,3}(?:,\d{3})+\b|-?\d+(?:\.\d+)?[eE][+-]?\d+|-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")


def _comparable(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _open_answer_matches(targets: Sequence[str], response: str) -> bool:
    response = response.strip().strip(".").lower()
    sentences = re.split(r"\.\s(?=[A-Z])|\n", response)
    parts = []
    for number, sentence in enumerate(sentences):
        last = number == len(sentences) - 1
        tails = [sentence.split(w)[-1].strip() for w in (*_INDICATORS, *(["="] if last else [])) if w in sentence]
        if tails:
            shortest = min(tails, key=len)
            if shortest not in ("", ":", ",", ".", "!", "?", ";", "'"):
                parts.append(shortest)
    said: list[str | float] = []
    for part in parts or [response]:
        for text in (part, *re.findall(_NUMBER, part)):
            said.extend(_comparable(text))
    wanted = [value for target in targets for value in _comparable(target)]
    return any(any(isinstance(s, str) and w in s for s in said) if isinstance(w, str) else w in said for w in wanted)
