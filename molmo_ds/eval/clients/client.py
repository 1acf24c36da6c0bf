"""What an evaluation asks and what comes back from whatever answers: a network in this process, or a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

FAILED = "failed: "  # before the sentence in a reply's end


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question."""

    id: str  # TASK:SPLIT:QUESTION, the same in every run
    # encoded, as they lie in the shard: pictures, a video's file, or its frames
    pictures: tuple[bytes, ...]
    annotation: dict[str, Any]  # without the truth: what the prompt is made of
    seed: int  # of the draw of a template: number of the sample
    max_new_tokens: int
    film: dict[str, Any] | None = None  # what the record says of its video (record.film_of)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer to one question, or why there is none."""

    id: str
    text: str
    token_count: int
    # stop (by itself), length (max_new_tokens), context (the last position known), failed: SENTENCE
    end: str
    prompt: str = ""  # the text that was asked, IMAGE[n] for a block of n patches

    @property
    def failed(self) -> bool:
        """Whether there is no answer, so nothing to score."""
        return self.end.startswith(FAILED)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which questions a rank asks: those of every `count`-th picture from `index` on, as the others of its replica."""

    index: int
    count: int
    writes: bool = True  # whether this rank of the replica logs the replies


class Client(Protocol):
    """Answers questions."""

    def replies(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """One reply for each question, in the order in which they are ready.

        Questions are taken when there is room for them, so `asks` may be longer than memory. Those of equal pictures
        or of one video should follow each other.
        """
        ...


def failure(ask: Ask, sentence: object) -> Reply:
    """The reply to a question that could not be answered."""
    return Reply(id=ask.id, text="", token_count=0, end=f"{FAILED}{sentence}")
