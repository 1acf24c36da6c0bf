"""What every score of a text needs: the answer inside a reply, the true answers, the distance of two texts.

Source: allenai/molmo 793fa38, olmo/eval/evaluators.py (VqaEval) and olmo/eval/vqa.py.
"""

from __future__ import annotations


def parse_answer(text: str) -> str:
    """The answer in a reply: from its first `Answer:` to the next, else its commonest line."""
    if "Answer:" in text:
        return text.split("Answer:")[1].strip()
    return commonest_line(text) if "\n" in text.strip() else " ".join(text.split())


def commonest_line(text: str) -> str:
    """The most frequent line of a reply, the first of several, with inner blanks squeezed."""
    lines = [" ".join(line.split()) for line in text.strip().split("\n")]
    return max(lines, key=lines.count)


def true_answers(target: object) -> list[str]:
    """The answers of an annotation as a list; ValueError if there is none: nothing could be right."""
    answers = [target] if isinstance(target, str) else target
    if not isinstance(answers, list | tuple) or not answers:
        raise ValueError(
            f"The true answer is {target!r}; a score needs a text or a list of at least one text."
        )
    wrong = [answer for answer in answers if not isinstance(answer, str)]
    if wrong:
        raise ValueError(f"Among the true answers is {wrong[0]!r}; write every answer as a text.")
    return list(answers)


def whole_number(text: str) -> int | None:
    """The number that a text is; None for any other text, and for more digits than Python reads."""
    try:
        return int(text)
    except ValueError:
        return None


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: insertions, deletions and replacements that turn a into b.

    A column of the table of distances is two integers, of which bit i says that the distance rises, or falls, from
    letter i to the next (Hyyro, "A bit-vector algorithm for computing Levenshtein and Damerau edit distances", 2003).
    """
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for i, letter in enumerate(a):
        places[letter] = places.get(letter, 0) | 1 << i
    whole = (1 << len(a)) - 1
    last = 1 << (len(a) - 1)
    rises = whole
    falls = 0
    distance = len(a)
    for letter in b:
        match = places.get(letter, 0)
        equal = (((match & rises) + rises) ^ rises) | match | falls
        right_rises = falls | (~(equal | rises) & whole)
        right_falls = rises & equal
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = right_rises << 1 | 1
        rises = (right_falls << 1 | ~(equal | right_rises)) & whole
        falls = right_rises & equal & whole
    return distance
