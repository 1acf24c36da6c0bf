"""Dense captions: the verdicts in a judge's replies, line by line, and the sample of pictures; eval/captions asks.

Source of the rule: allenai/molmo2 f3cb108, scripts/gpt_dense_caption_eval.py. Only lines that are understood count,
and nothing ties line k of a reply to statement k.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from numpy.random import RandomState

# Beginnings of words, misspelt ones included, that a judge was seen to use.
_AGAINST = (
    *("inconsisten", "inconsiten", "iinconsisten", "iinconsiten", "inconsisent", "iconsistent"),
    *("incorrect", "incomplete", "contradictory"),
)
_FOR = ("consistent", "constistent", "correct")
SAMPLE_SEED = 12312


def read_recall(reply: str) -> list[bool | None]:
    """Of each line whether it says that a statement is stated in the caption; None where it says neither."""
    return [_stated(line) for line in _lines(reply)]


def read_consistency(reply: str) -> list[bool | None]:
    """For each line whether it calls a claim inconsistent with the transcripts; None for both or neither."""
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
    """False if the line ends in `not st...` without a full stop, as in the published figures."""
    line = line.lower()
    before, _, last = line.rpartition(" ")
    misspelt = last.startswith("st") and len(last) > 2 and last.isascii() and last.isalpha()
    if misspelt and re.split(r"\W", before)[-1] == "not":
        return False
    return True if " stated" in line else None


def _inconsistent(line: str) -> bool | None:
    words = re.split("[^a-z]", line.lower())[1:]  # the first stands before any number or blank
    against = any(word.startswith(_AGAINST) for word in words)
    supports = any(word.startswith(_FOR) for word in words)
    return None if against == supports else against
