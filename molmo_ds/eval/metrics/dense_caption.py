"""Dense captions: a judge's replies read as the reference reads them, and its sample; eval/captions asks the judge.

Source: the rules of the reference's scripts/gpt_dense_caption_eval.py, whose goldens are in tests/goldens. Only lines
that are understood count, and nothing ties line k of a reply to statement k.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from numpy.random import RandomState

_NOT_STATED = re.compile(r".*\bnot st[a-z]+$", re.IGNORECASE)  # `Not Stated.` is not one: published figures have it so
_INCONSISTENT = re.compile(
    r".*[^a-z](i?inconsis?ten(t|cy)?|incorrect|inconsistence|iconsistent|inconsisent|incomplete|contradictory).*",
    re.IGNORECASE,
)
_CONSISTENT = re.compile(r".*[^a-z](consistent(ly)?|constistent|correct).*", re.IGNORECASE)
SAMPLE_SEED = 12312


def read_recall(reply: str) -> list[bool | None]:
    """Of each line whether it says that a statement is stated in the caption; None where it says neither."""
    return [_stated(line) for line in _lines(reply)]


def read_consistency(reply: str) -> list[bool | None]:
    """Of each line whether it says that a claim is inconsistent with the transcripts; None where both or neither."""
    return [_inconsistent(line) for line in _lines(reply)]


def read_repetition(reply: str) -> bool | None:
    """Whether the judge says that a caption repeats itself; None where it says neither yes nor no."""
    if "yes" in reply.lower():
        return True
    return False if "no" in reply.lower() else None


def cap_f1(means: Mapping[str, float]) -> dict[str, float]:
    """`cap_f1`, the paper's harmonic mean of recall and consistency, and `avg`, the arithmetic one of the script."""
    recall = means.get("recall")
    consistency = means.get("consistency")
    if recall is None or consistency is None:
        return {}
    total = recall + consistency
    return {"cap_f1": 2 * recall * consistency / total if total else 0.0, "avg": total / 2}


def sample(urls: Iterable[str], count: int | None) -> list[str]:
    """The first `count` (None = all) of the addresses in the reference's order of drawing."""
    ordered = sorted(urls, key=lambda url: hashlib.sha256(url.encode()).hexdigest())
    if count is not None:
        RandomState(SAMPLE_SEED).shuffle(ordered)
        ordered = ordered[:count]
    return ordered


def _lines(reply: str) -> list[str]:
    return [line.strip() for line in reply.split("\n") if line.strip()]


def _stated(line: str) -> bool | None:
    if _NOT_STATED.fullmatch(line):
        return False
    return True if " stated" in line.lower() else None


def _inconsistent(line: str) -> bool | None:
    against = _INCONSISTENT.fullmatch(line) is not None
    supports = _CONSISTENT.fullmatch(line) is not None
    return None if against == supports else against
