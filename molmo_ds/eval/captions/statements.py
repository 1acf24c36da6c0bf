"""Reads a judge's replies by number: every statement has exactly one verdict, or the reply is unreadable.

The reference's reading by line, which published figures were made with, is eval/metrics/dense_caption.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# with what Markdown may put before a number
_NUMBERED = re.compile(r"^[\s>*_#-]*(\d+)\s*[.):\]-]\s*(.*)$")
_DRESS = " \t*_`\"'"  # around a verdict


class Unreadable(ValueError):
    """A reply that does not answer what was asked; its sentence says why."""


@dataclass(frozen=True)
class Words:
    """The two verdicts of a list."""

    yes: str
    no: str

    def read(self, text: str) -> bool | None:
        """The verdict that a text begins with, or None where it begins with none or also names the other."""
        both = re.compile(rf"\b(?:{re.escape(self.no)}|{re.escape(self.yes)})\b", re.IGNORECASE)
        found = {match.lower() for match in both.findall(text)}
        if len(found) != 1 or not both.match(text):
            return None
        return found == {self.yes.lower()}


STATED = Words("Stated", "Not Stated")
CONSISTENT = Words("Consistent", "Inconsistent")


def verdicts(reply: str, count: int, words: Words) -> list[bool]:
    """The verdicts of statements 1 to `count`, in the statements' order whatever the lines' order.

    Lines without a number are no verdicts. Raises Unreadable where a statement has none or two, where a number belongs
    to no statement, or where a verdict is neither of the words.
    """
    found: dict[int, bool] = {}
    for number, text in _numbered(reply):
        verdict = words.read(text.strip(_DRESS))
        if not 1 <= number <= count:
            raise Unreadable(f"There is a verdict {number}, but {count} statements.")
        if number in found:
            raise Unreadable(f"Statement {number} has two verdicts.")
        if verdict is None:
            raise Unreadable(
                f"Statement {number} is judged '{_short(text)}', not {words.yes} or {words.no}."
            )
        found[number] = verdict
    missing = [number for number in range(1, count + 1) if number not in found]
    if missing:
        raise Unreadable(
            f"{len(missing)} of {count} statements have no verdict, the first is {missing[0]}."
        )
    return [found[number] for number in range(1, count + 1)]


def read_claims(reply: str) -> list[str]:
    """The texts of a numbered list, in order. Raises Unreadable where it has none."""
    found = [text.strip() for _, text in _numbered(reply) if text.strip()]
    if not found:
        raise Unreadable(f"There is no numbered claim in '{_short(reply)}'.")
    return found


def read_repeating(reply: str) -> bool:
    """Yes or No. Raises Unreadable for anything else."""
    words = set(re.findall(r"[a-z]+", reply.lower())) & {"yes", "no"}
    if len(words) != 1:
        raise Unreadable(f"The reply is '{_short(reply)}', not Yes or No.")
    return words == {"yes"}


def _numbered(reply: str) -> list[tuple[int, str]]:
    found = [_NUMBERED.match(line) for line in reply.splitlines()]
    return [(int(match[1]), match[2]) for match in found if match]


def _short(text: str) -> str:
    return " ".join(text.split())[:60]
