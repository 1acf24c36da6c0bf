"""Captions and the references that they are judged by, read from files and paired by picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molmo_ds.eval.metrics import dense_caption

KEYS = ("image_url", "id")  # of a reference: what names its picture
IDS = ("id", "example_id", "image_id")  # of a prediction, where references have ids
FIELDS = ("transcripts", "statements")


@dataclass(frozen=True)
class Reference:
    """What people said of one picture."""

    picture: str  # its address or id
    transcripts: tuple[str, ...]  # of what each of them said
    statements: tuple[str, ...]  # the single facts in it


@dataclass(frozen=True)
class Task:
    """One caption and its reference."""

    reference: Reference
    caption: str


def read_references(path: Path) -> tuple[str, list[Reference]]:
    """(image_url or id, the references of a file of JSON lines, in its order).

    Raises ValueError, with the line's number, for a line that is not as docs/guides/captions.md says.
    """
    found: dict[str, Reference] = {}
    keys: set[str] = set()
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            key, reference = _reference(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        keys.add(key)
        if len(keys) > 1:
            raise ValueError(
                f"{path}, line {number}: name all pictures by image_url or all by id, not some by each."
            )
        if reference.picture in found:
            raise ValueError(
                f"{path}, line {number}: {reference.picture} has a reference already; keep one."
            )
        found[reference.picture] = reference
    if not found:
        raise ValueError(
            f"{path} holds no references; docs/guides/captions.md says how to write them."
        )
    return keys.pop(), list(found.values())


def _reference(line: str) -> tuple[str, Reference]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object; write one object a line.")
    named = [key for key in KEYS if key in row]
    if len(named) != 1:
        raise ValueError("name the picture by image_url or by id, one of them.")
    unknown = sorted(set(row) - {*FIELDS, *named})
    if unknown:
        raise ValueError(
            f"there is a field '{unknown[0]}'; a reference has {named[0]}, {' and '.join(FIELDS)} only."
        )
    picture = row[named[0]]
    if not isinstance(picture, str | int) or picture == "":
        raise ValueError(f"{named[0]} is {picture!r}; write a text or a number.")
    return named[0], Reference(str(picture), *(_texts(row, field) for field in FIELDS))


def _texts(row: dict[str, Any], field: str) -> tuple[str, ...]:
    values = row.get(field)
    if not isinstance(values, list) or not values:
        raise ValueError(f"'{field}' is missing or empty; it is a list of at least one text.")
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise ValueError(f"'{field}' holds something else than texts, or an empty one.")
    return tuple(values)


def read_captions(path: Path, key: str) -> dict[str, str]:
    """Picture -> caption of a predictions.json, or of the folder that holds it.

    Raises ValueError where rows lack the key or a prediction, or one picture has two captions.
    """
    file = path / "predictions.json" if path.is_dir() else path
    try:
        rows = json.loads(_text(file))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}).") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} is no list of objects, as an evaluation writes its predictions.")
    names = IDS if key == "id" else (key,)
    found: dict[str, str] = {}
    for number, row in enumerate(rows):
        named = [row[name] for name in names if row.get(name) not in (None, "")]
        if not named:
            raise ValueError(
                f"{file}, row {number}: there is no {' or '.join(names)}, which the references go by."
            )
        if not isinstance(row.get("prediction"), str):
            raise ValueError(f"{file}, row {number}: there is no prediction.")
        caption = row["prediction"].strip()
        if found.setdefault(str(named[0]), caption) != caption:
            raise ValueError(f"{file}: {named[0]} has two different captions; keep one.")
    return found


def _text(file: Path) -> str:
    if not file.is_file():
        raise ValueError(f"There is no file {file}.")
    return file.read_text(encoding="utf-8")


def sample(references: Sequence[Reference], size: int | None) -> list[Reference]:
    """`size` references drawn as the reference implementation draws them; all, in order of picture, for None.

    Raises ValueError where there are fewer.
    """
    if size is not None and not 1 <= size <= len(references):
        raise ValueError(
            f"--sample is {size}, but there are {len(references)} references; draw from 1 to that many."
        )
    drawn = set(dense_caption.sample([one.picture for one in references], size))
    return sorted((one for one in references if one.picture in drawn), key=lambda one: one.picture)


def pair(references: Sequence[Reference], captions: dict[str, str], partial: bool) -> list[Task]:
    """The references with their captions; with `partial` only those that have one.

    Raises ValueError where a caption is missing, or all are.
    """
    missing = [one.picture for one in references if one.picture not in captions]
    if len(missing) == len(references):
        raise ValueError(
            f"No picture has a caption, for example {missing[0]}; are the names the same in both files?"
        )
    if missing and not partial:
        raise ValueError(
            f"{len(missing)} of {len(references)} pictures have no caption, the first is {missing[0]}; caption them, "
            "or give --partial to judge the others."
        )
    return [Task(one, captions[one.picture]) for one in references if one.picture in captions]
