"""A public data set: its address, its terms, and the pure function from a row to items."""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

Row = Mapping[str, Any]


class LeftOut(Exception):
    """Raised by an adapter for a row that is not to be used; rows are counted by its message."""


class Picture(NamedTuple):
    """One picture of a row: its bytes, a file below the data set's folder, or an address."""

    data: bytes = b""
    path: str = ""
    url: str = ""
    sha256: str = ""  # of the bytes at the address, where it is published
    redraw: Callable[[Image.Image], Image.Image] | None = None  # what is done to its pixels first


@dataclass(frozen=True)
class Item:
    """One record before its pictures are fetched; `annotations` and `metadata`: docs/reference/data-format.md."""

    pictures: tuple[Picture, ...]
    annotations: list[dict[str, Any]]
    metadata: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)  # clip and subtitles of a video


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How the annotations of a picture become records in training; all that is dropped is counted."""

    annotations: int | None = None  # the most of one record; more become several of nearly one size
    halve: bool = False  # two records where there are two annotations or more, the first the larger
    points: int | None = None  # the most of one annotation, which is dropped above
    points_of_record: int | None = None  # a record ends before its points are more
    styles: tuple[str, ...] = ()  # each record comes once in each of them


@dataclass(frozen=True)
class Source:
    """A public data set.

    `adapt(row, split)` does no I/O; an empty list means that the row cannot be used. Rows that are equal in the column
    `group` show the same picture: in training they become one record with several annotations.
    """

    name: str  # in training as allenai/molmo's get_dataset_by_name has it
    licence: str  # of the annotations, a star where it was not checked; pictures stay their owners'
    layout: str  # where the columns below were read
    adapt: Callable[[Row, str], list[Item]]
    # to theirs
    splits: dict[str, str] = field(
        default_factory=lambda: {s: s for s in ("train", "validation", "test")}
    )
    hub: str = ""
    configs: tuple[str, ...] = ()
    url: str = ""  # column of the address, where pictures are published as addresses
    sha256: str = ""  # column of their hashes
    group: str = ""
    by_hand: str = ""  # where to fetch it and where to put it, when no program may
    # rows from the folder of a set fetched by hand
    read: Callable[[Path, str], Iterable[Row]] | None = None
    own: bool = False  # `read` has rows without a folder too, which is then None
    confirmed: bool = True  # the layout was seen in the card or in code that reads the data
    aliases: tuple[str, ...] = ()  # other names of the same
    changed: str = ""  # what the name meant in earlier versions, in a sentence
    only: tuple[str, str] = ("", "")  # a column and what it holds in the rows of this set
    cut: Cut = Cut()
    without: str = ""  # an evaluation set; its pictures are left out of training


def picture(value: Any) -> tuple[Picture, ...]:
    """An image column (bytes, an undecoded `datasets.Image`, a file name, an address) as pictures; none for None."""
    if value is None:
        return ()
    if isinstance(value, Mapping):
        return picture(value["bytes"] if value.get("bytes") else value.get("path"))
    if isinstance(value, bytes):
        return (Picture(data=value),)
    return (
        (Picture(url=value),)
        if value.startswith(("http://", "https://"))
        else (Picture(path=value),)
    )


def annotation(style: str, **known: Any) -> dict[str, Any]:
    """An annotation without the keys whose value is None."""
    return {"style": style, **{key: value for key, value in known.items() if value is not None}}


def asks(
    style: str,
    image: str = "image",
    question: str = "question",
    answer: str = "answer",
    **known: str,
) -> Callable[[Row, str], list[Item]]:
    """The adapter of rows with one question about one picture, by their columns; `known` are those of the metadata.

    `image` may also be a path around a column, images/{file}. An answer that is a list is several people's; outside of
    the training split it may be missing.
    """

    def adapt(row: Row, split: str) -> list[Item]:
        said = row[answer] if split == "train" else row.get(answer)
        if isinstance(said, Sequence) and not isinstance(said, str):
            asked = annotation(style, question=row[question], answers=list(said) or None)
        else:
            asked = annotation(
                style, question=row[question], answer=None if said is None else str(said)
            )
        shown = picture(image.format_map(row) if "{" in image else row[image])
        return [Item(shown, [asked], {name: row[column] for name, column in known.items()})]

    return adapt


def placed(question: str, right: Any, wrong: Iterable[Any]) -> tuple[list[Any], int]:
    """The options of a question in their order, the right one at a place that depends on the question alone."""
    options = list(wrong)
    place = zlib.crc32(question.encode()) % (len(options) + 1)
    options.insert(place, right)
    return options, place


def pairs(questions: Any) -> list[tuple[Any, Any]]:
    """(question, answer) of a nested column, which parquet may hold as a list of structs or a struct of lists."""
    if isinstance(questions, Mapping):
        return list(zip(questions["question"], questions["answer"]))
    return [(q["question"], q["answer"]) for q in questions]


def twins(rows: Iterable[Row], *keys: str) -> Iterator[Row]:
    """The rows, each with `twin`: how many before it are equal in these columns, which name a question."""
    seen: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        name = tuple(row[key] for key in keys)
        yield {**row, "twin": seen[name]}
        seen[name] += 1


def apart(name: str, row: Row) -> str:
    """The name of a row that may have `twins`; the first keeps it."""
    return f"{name}_{row['twin']}" if row.get("twin") else name


def read_json(folder: Path, name: str) -> Any:
    """A JSON file of a data set fetched by hand; FileNotFoundError where it is not in its place."""
    return json.loads((folder / name).read_text(encoding="utf-8"))
