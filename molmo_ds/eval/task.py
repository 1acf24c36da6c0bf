"""A benchmark as an evaluation knows it: its questions, how long an answer may be, how a reply is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.record import film_of
from molmo_ds.eval.row import Row, Scores, true_answer

MODELS = ("MolmoE-1B", "Molmo-7B-O", "Molmo-7B-D", "Molmo-72B")  # the columns of `published`


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split as the command line names it."""

    shards: str  # folder that `molmo-ds download` writes for it, SOURCE-SPLIT
    questions: int | None = None  # None where the number is not known
    public: bool = True  # whether its answers are


@dataclass(frozen=True, kw_only=True)
class Published:
    """Figures of the released models for the headline metric, in percent, in the order of MODELS."""

    figures: tuple[float | None, float | None, float | None, float | None]
    split: str  # where they were measured


def own_id(metadata: Mapping[str, Any]) -> str:
    """The data set's own id of a question, "" where it has none."""
    found = metadata.get("example_id")
    return "" if found is None else str(found)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One benchmark. `score` is pure: the reply's text and the row give named numbers, whatever rank asks and when."""

    name: str  # on the command line
    benchmark: str  # as people write it
    styles: tuple[str, ...]  # of the annotations that it asks, which make the prompt
    # the first one is meant where none is named; none at all: any shards
    splits: Mapping[str, Split]
    max_new_tokens: int
    score: Callable[[str, Row], Scores]
    headline: str  # the metric that is printed first
    # of Molmo2, which answers by an option's letter and text; None = max_new_tokens
    molmo2_new_tokens: int | None = None
    # of the published figures; None = as many as the model was trained with
    crops: int | None = None
    # which records are asked, by their metadata
    where: Callable[[Mapping[str, Any]], bool] = lambda metadata: True
    # its id
    question: Callable[[Mapping[str, Any]], str] = own_id
    # for people and for the chance level; None = not public
    truth: Callable[[Row], str | None] = true_answer
    # what to break the headline down by
    categories: Callable[[Row], Mapping[str, str]] = lambda row: {}
    # questions of one group are one of the benchmark's, right where all of them are: `m_b_acc`
    group: Callable[[Row], str] | None = None
    # metrics made of others
    derived: Callable[[Mapping[str, float]], Mapping[str, float]] = lambda means: {}
    published: Published | None = None
    submission: str = ""  # form of the test server's file, a name of eval/submit.py
    aliases: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        """The split that is meant where none is named."""
        return next(iter(self.splits), "")

    def new_tokens(self, family: str) -> int:
        """How long an answer of a model of a family may be."""
        return (self.molmo2_new_tokens if family == "molmo2" else None) or self.max_new_tokens

    @property
    def tokens_shown(self) -> str:
        """The same for people."""
        of_molmo2 = "" if self.molmo2_new_tokens is None else f", Molmo2 {self.molmo2_new_tokens}"
        return f"{self.max_new_tokens}{of_molmo2}"

    def rows(self, shards: ShardSet, split: str, limit: int | None = None) -> Iterator[Row]:
        """The first `limit` questions (None = all) in the order of the shards.

        A row's id ends in the data set's own id of the question, or the sample's key where it has none. Raises
        ValueError where two questions have one id.
        """
        seen: set[str] = set()
        for index in range(len(shards)):
            record = shards.record(index)
            known = record.get("metadata") or {}
            if not self.where(known):
                continue
            asked = [one for one in record["annotations"] if one.get("style") in self.styles]
            for number, annotation in enumerate(asked):
                name = self._name(known) or record["__key__"]
                name += f"#{number}" if len(asked) > 1 else ""
                row_id = f"{self.name}:{split}:{name}"
                if row_id in seen:
                    raise ValueError(
                        f"Two questions of {self.name}:{split} are called {name}; make the shards again."
                    )
                if len(seen) == limit:
                    return
                seen.add(row_id)
                yield Row(
                    id=row_id,
                    index=index,
                    picture=_picture(shards, index, record),
                    annotation=annotation,
                    metadata=known,
                    size=tuple(record["sizes"][0]) if record["sizes"] else (0, 0),
                    shown=tuple(record["images"]),
                    film=film_of(record),
                )

    def _name(self, metadata: Mapping[str, Any]) -> str:
        try:
            return self.question(metadata)
        except (LookupError, TypeError) as error:
            raise ValueError(
                f"A record's metadata do not say which question of {self.name} it is ({error}); make the shards again."
            ) from error


def _picture(shards: ShardSet, index: int, record: Mapping[str, Any]) -> str:
    """The data set's own name of a picture, else a hash of its bytes, so that equal pictures have equal names."""
    known = record.get("metadata") or {}
    for key in ("image_id", "image_url", "video_id"):
        if known.get(key) is not None:
            return str(known[key])
    if not record["images"]:
        return record["__key__"]
    parts = shards.parts(index)
    digest = hashlib.sha256()
    for name in record["images"]:
        digest.update(parts[name])
    return digest.hexdigest()[:16]
