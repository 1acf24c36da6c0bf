"""What the judge is asked, in our own words; a change of a text is a change of VERSION.

Each function returns the messages of one chat completion. Lists are numbered from 1, so that a verdict can be matched
with its statement by number.
"""

from __future__ import annotations

from collections.abc import Sequence

VERSION = "1"  # part of every result: figures of two versions are not comparable

Messages = list[dict[str, str]]


def recall(statements: Sequence[str], caption: str, of: str = "picture") -> Messages:
    """Which reference statements a caption makes; `of`: what is described."""
    return _user(
        f"People looked at a {of} and described it; these statements sum up what they said.",
        _block("statements", numbered(statements)),
        f"A program described the same {of}:",
        _block("caption", caption),
        "Decide for each statement whether the program's description says it, in these or in other words. Judge by "
        "the description alone, not by what is likely.",
        _form("Stated", "Not Stated", len(statements)),
    )


def claims(caption: str, of: str = "picture") -> Messages:
    """The separate claims that a caption makes; `of`: what is described."""
    return _user(
        f"Take this description of a {of} apart:",
        _block("caption", caption),
        f"List every claim that it makes about the {of}. A claim is one short sentence that can be understood "
        "alone and holds a single fact; split what holds several. Leave nothing out, add nothing, and do not repeat a "
        "claim.",
        "Answer with a numbered list and nothing else, one claim a line: 1. ... 2. ...",
    )


def consistency(transcripts: Sequence[str], stated: Sequence[str]) -> Messages:
    """Which claims agree with what people said about the picture."""
    return _user(
        f"{len(transcripts)} recordings of people who look at one picture and talk about it, written down:",
        *(_block("transcript", transcript) for transcript in transcripts),
        "A program claims of the same picture:",
        _block("claims", numbered(stated)),
        "Decide for each claim whether it agrees with what the people say. A claim that they support, or that fits all "
        "they say, is consistent; one that contradicts them, or speaks of something that they would have mentioned "
        "had it been there, is inconsistent.",
        _form("Consistent", "Inconsistent", len(stated)),
    )


def repetition(caption: str) -> Messages:
    """Whether a caption says the same again and again."""
    return _user(
        "This is a program's description of a picture:",
        _block("caption", caption),
        "Is it stuck, so that it goes on repeating the same phrases or sentences? Naming a thing twice in passing is "
        "no repetition. Answer with Yes or No and nothing else.",
    )


def kinds(stated: Sequence[str], names: Sequence[str]) -> Messages:
    """Claims about a video as single facts, each with one of the categories `names`."""
    return _user(
        "A program claims of a video:",
        _block("claims", numbered(stated)),
        "Split each claim that holds several facts into sentences of one fact each, and keep the others as they are. "
        f"Give every fact the category that fits it best, one of: {', '.join(names)}.",
        "Answer with a numbered list and nothing else, one fact a line, its category after a bar: 1. ... | Object",
    )


def supported(stated: Sequence[str], caption: str) -> Messages:
    """Which facts that a program claims of a video are in the description that people made of it."""
    return _user(
        "A program claims of a video:",
        _block("statements", numbered(stated)),
        "People described the same video:",
        _block("description", caption),
        "Decide for each claim whether the people's description says it, in these or in other words. Judge by the "
        "description alone, not by what is likely.",
        _form("Stated", "Not Stated", len(stated)),
    )


def numbered(lines: Sequence[str]) -> str:
    """`1. first`, `2. second`, ...; each on one line."""
    return "\n".join(f"{i}. {' '.join(line.split())}" for i, line in enumerate(lines, 1))


def _form(yes: str, no: str, count: int) -> str:
    return (
        f"Answer with {count} numbered lines and nothing else, one for each, in the same order; a line is its number "
        f"and then {yes} or {no}, for example: 1. {yes}"
    )


def _block(name: str, text: str) -> str:
    return f"<{name}>\n{text.strip()}\n</{name}>"


def _user(*parts: str) -> Messages:
    return [{"role": "user", "content": "\n\n".join(parts)}]
