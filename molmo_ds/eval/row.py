"""One question of a benchmark with its truth, and the rows of a benchmark read from shards."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.random import RandomState

from molmo_ds.config import PromptConfig
from molmo_ds.data.sample.prompts import PromptFormatter

Annotation = dict[str, Any]
Size = tuple[int, int]  # width, height
Scores = dict[str, float]  # named numbers, 1 is best, and UNREADABLE
# 1.0 where the reply holds no answer of the expected form, so that it was guessed or is wrong
UNREADABLE = "unreadable"
# the truth
HIDDEN = ("answer", "answers", "answer_index", "text", "boxes", "masks")
HIDDEN += ("points", "inline_points", "point_groups", "tracks")

_DRAWS = RandomState(0)  # made once: making one costs more than scoring a row


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question; `metadata` is the record's (docs/reference/data-format.md)."""

    id: str  # TASK:SPLIT:QUESTION, the same in every run
    index: int  # of its sample in the shards
    picture: str  # a name of its picture: two questions about one picture are not independent
    annotation: Annotation
    metadata: Mapping[str, Any] = field(default_factory=dict)
    size: Size = (0, 0)  # of its first upright picture
    shown: tuple[str, ...] = ()  # the parts of its sample that are pictures, a video or its frames
    film: Mapping[str, Any] | None = None  # what the record says of its video; None = pictures

    def question(self) -> Annotation:
        """The annotation without its truth: all that a prompt may be made of."""
        return {name: value for name, value in self.annotation.items() if name not in HIDDEN}

    @functools.cached_property
    def answers(self) -> Any:
        """The true answers of the annotation, a text or several as it has them, numbers as texts."""
        given = self.annotation.get("answers")
        given = self.annotation.get("answer") if given is None else given
        if isinstance(given, list | tuple):
            return tuple(as_text(answer) for answer in given)
        return as_text(given)

    @functools.cached_property
    def learnt(self) -> str | None:
        """What training would teach as the answer, without its leading space; None where it is not public."""
        known = self.annotation
        if not known.get("answers") and all(
            known.get(name) is None for name in ("answer", "answer_index", "points")
        ):
            return None
        _DRAWS.seed(0)
        return _formatter().messages(known, _DRAWS, self.size if self.size[0] else None)[-1].strip()

    def random(self) -> random.Random:
        """A generator that depends on the row alone, never on the rank or the order of rows."""
        return random.Random(self.id)


def as_text(answer: Any) -> Any:
    """A number as training writes it; anything else as it is."""
    number = (
        isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer)
    )
    return str(answer) if number else answer


def true_points(row: Row) -> list[tuple[float, float]]:
    """The points of the annotation in pixels; none where it has none."""
    scale = row.annotation.get("point_scale")
    across, down = (1, 1) if scale is None else (row.size[0] / scale, row.size[1] / scale)
    return [(across * x, down * y) for x, y in row.annotation.get("points") or ()]


def true_answer(row: Row) -> str | None:
    """The truth of most tasks: what training would teach."""
    return row.learnt


@functools.cache
def _formatter() -> PromptFormatter:
    return PromptFormatter(PromptConfig(system_prompt="none"))


def by_metadata(*keys: str) -> Callable[[Row], Mapping[str, str]]:
    """The categories of a row that stand in its record's metadata, those that are known."""

    def categories(row: Row) -> Mapping[str, str]:
        return {key: str(row.metadata[key]) for key in keys if row.metadata.get(key) is not None}

    return categories


def unscored(reply: str, row: Row) -> Scores:
    """No scores: the replies of this task are judged elsewhere."""
    return {}
