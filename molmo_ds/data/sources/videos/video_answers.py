"""Answers about a video that training learns, short or one of several options, and files with a question a row.

The styles are those of allenai/molmo2 at f3cb108, olmo/data/academic_video_datasets.py. Texts are taken as their files
have them; pandas, with which the reference reads tables, makes "not a number" of a cell that says `None`, `NA` or
`null`.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from molmo_ds.data.sources.source import (
    Item,
    LeftOut,
    Picture,
    Row,
    annotation,
    read_json,
)
from molmo_ds.data.sources.videos.video_files import read_text

LAYOUT = "allenai/molmo2, olmo/data/academic_video_datasets.py"
LICENCE = "not read*"
TRAIN = {"train": "train"}
CHOICE = "video_multiple_choice"
CHOICE_OF_SPOKEN = "video_multiple_choice_w_subtitle"
SHORT = "video_short_answer"
WHY = "left_out"  # column of a row that is not to be used: why


def choice(question: str, options: Sequence[str], place: int, style: str = CHOICE) -> dict:
    """A question with options, of which the one at `place` is right."""
    return annotation(style, question=question, options=list(options), answer_index=place)


def short(question: str, answer: str) -> dict:
    """A question with a short answer."""
    return annotation(SHORT, question=question, answer=answer)


def learnt(
    video: str | bytes,
    annotations: list[dict[str, Any]],
    known: dict[str, Any],
    about: dict[str, Any] | None = None,
) -> list[Item]:
    """The item of a video: a file below the data set's folder, or the bytes of one."""
    shown = Picture(data=video) if isinstance(video, bytes) else Picture(path=video)
    return [Item((shown,), annotations, known, about or {})]


def refuse(row: Row) -> None:
    """Raise LeftOut for a row whose reader found that it is not to be used."""
    if row.get(WHY):
        raise LeftOut(row[WHY])


def read_lines(folder: Path, name: str) -> Iterator[Any]:
    """The values of a file with a JSON value a line; FileNotFoundError where it is not in its place."""
    return map(json.loads, read_text(folder, name))


def read_cells(
    folder: Path, name: str, columns: Sequence[str] | None = None, delimiter: str = ","
) -> Iterator[dict[str, str]]:
    """The rows of a table of texts; `columns` names those of one without a header."""
    with open(folder / name, encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, columns, delimiter=delimiter)


def read_records(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSON file: a list of objects, or an object of columns whose cells have the rows' names."""
    content = read_json(folder, name)
    if not isinstance(content, Mapping):
        yield from content
        return
    rows = dict.fromkeys(row for column in content.values() for row in column)
    for row in rows:
        yield {name: column.get(row) for name, column in content.items()}
