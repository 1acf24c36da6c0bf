"""A row of any table and its pictures to a sample in the record format (docs/reference/data-format.md)."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from molmo_ds.data.convert.chats import FORMS, Row, familiar
from molmo_ds.data.convert.pictures import as_part, is_picture
from molmo_ds.data.convert.regions import with_points
from molmo_ds.data.convert.units import Bare, with_unit
from molmo_ds.data.decode import BadSample, upright_size
from molmo_ds.data.read.writer import Probe, check_key, header, probe
from molmo_ds.data.sample.annotation import KEYS
from molmo_ds.data.sample.conversation import is_plain, shown
from molmo_ds.data.sample.record import first_size
from molmo_ds.data.sample.review import Review

Sample = tuple[str, dict[str, bytes]]  # key, parts
# that a row's columns of the same names fill; boxes become points
FIELDS = tuple(sorted(KEYS - {"style"} | {"boxes"}))
# columns of a record with a video
ABOUT_VIDEO = ("num_frames", "clip", "subtitles", "frame_rates", "fps")
KEPT = ("annotations", "metadata", *ABOUT_VIDEO, "key")  # columns of a record
IMAGES = ("image", "images")  # columns of the pictures, where --image names none
TEXTS = ("question", "text", "answer", "label")
LISTS_OF_TEXTS = ("answers", "options")
ANSWERS = ("text", "answer", "answers", "points", "boxes", "question")  # of a row in our own form


@dataclass
class Notes:
    """Notes on samples; columns that were there, and columns that were used."""

    counts: Counter[str] = field(default_factory=Counter)
    review: Review = field(default_factory=Review)
    bare: Bare = field(default_factory=Bare)
    columns: set[str] = field(default_factory=set)
    filled: set[str] = field(default_factory=set)  # those that were not always empty
    used: set[str] = field(default_factory=set)

    def merge(self, other: "Notes") -> None:
        """Add what another process noted."""
        self.counts += other.counts
        self.review.merge(other.review)
        self.bare.merge(other.bare)
        self.columns |= other.columns
        self.filled |= other.filled
        self.used |= other.used


@dataclass(frozen=True)
class Mapping:
    """A row as a record: the style of rows without `annotations`, field -> column, columns of the pictures.

    `without` are columns to leave out on purpose; `questions` keeps samples that only ask. `unit` (of units.SCALES) and
    `box_form` (of units.BOX_FORMS) hold for rows that do not say the unit of their points and boxes.
    """

    style: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    images: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    questions: bool = False
    decode: bool = True
    unit: str = ""
    box_form: str = ""

    def picture_columns(self, row: Iterable[str]) -> list[str]:
        """The columns of a row, or of a table, that hold its pictures, in their order."""
        names = self.images or IMAGES
        return [name for name in names if name in row and name not in self.without]

    def familiar(self, row: Row) -> tuple[Row, set[str]]:
        """The row with `messages` where it has the form of another trainer, and the columns that went into them."""
        named = {column for _, column in self.columns}
        read = {"annotations", "messages", "conversations", *ANSWERS, *named}
        if named & {name for needed, others in FORMS for name in (*needed, *others)}:
            return row, set()
        return familiar(row, read)

    def annotation(self, row: Row, notes: Notes) -> Row:
        """One annotation of the row's columns; BadSample when the row has none of the fields or there is no style."""
        taken = {column for _, column in self.columns}
        columns = {name: name for name in FIELDS if name not in taken} | dict(self.columns)
        found = {name: row[column] for name, column in columns.items() if is_there(row.get(column))}
        style = self.style or row.get("style")
        if not found or not style:
            raise BadSample(
                "The row has no 'annotations'; give --style and say which columns to use, for example "
                f"--map question=query answer=label (the row has: {', '.join(map(str, row))})."
            )
        notes.used |= {columns[name] for name in found}
        notes.used |= set() if self.style else {"style"}
        return {"style": style} | {
            name: _as_text(name, value, notes) for name, value in found.items()
        }


def to_sample(key: str, row: Row, pictures: list[bytes], mapping: Mapping, notes: Notes) -> Sample:
    """A row (without its pictures' columns) and its encoded pictures as one sample.

    Raises BadSample for whatever would make it useless in training, and for pictures that would be lost.
    """
    if not is_plain(key):
        raise BadSample(
            f"Its name {ascii(key)} is not UTF-8 or holds control characters; rename it."
        )
    try:
        check_key(key)
    except ValueError as error:
        raise BadSample(str(error)) from None
    row = {name: value for name, value in row.items() if name not in mapping.without}
    if not pictures:
        refuse_lost_pictures(row, set(mapping.without), set())
        notes.counts["samples without a picture"] += 1
    made = [as_part(data, notes.counts, mapping.decode) for data in pictures]
    names = [name if len(made) == 1 else f"{i}.{name}" for i, (name, _) in enumerate(made)]
    data = [data for _, data in made]
    probes = [probe(one, name) for name, one in zip(names, data)]
    sizes = [_size(found) for found in probes]
    if row.get("annotations") is None:
        without_objects = with_points(row, sizes)
        notes.used |= row.keys() - without_objects.keys()
        row = without_objects
    given = row.get("annotations")
    record: Row = {"images": names}
    record["annotations"] = [mapping.annotation(row, notes)] if given is None else given
    if not isinstance(record["annotations"], list):
        raise BadSample(f"'annotations' is {shown(given)}, but must be a list.")
    record |= {name: row[name] for name in ("metadata", *ABOUT_VIDEO) if is_there(row.get(name))}
    first = first_size(record | {"sizes": sizes})
    record["annotations"] = [
        with_unit(one, first, mapping.unit, mapping.box_form, notes.bare)
        for one in record["annotations"]
    ]
    notes.columns |= set(map(str, row))
    notes.filled |= {str(name) for name, value in row.items() if is_there(value)}
    notes.used |= set(KEPT) - {"key"}  # which names samples of lines and CSV alone
    durations = [found.duration for found in probes]
    _review(record | {"sizes": sizes, "durations": durations}, mapping, notes)
    parts = dict(zip(names, data)) | {"json": _to_json(record, notes)}
    for name, content in parts.items():
        try:
            header(f"{key}.{name}", len(content))
        except ValueError as error:
            raise BadSample(str(error)) from None
    return key, parts


def _size(found: Probe) -> tuple[int, int]:
    return upright_size(found.width, found.height, found.orientation)


def _review(record: Row, mapping: Mapping, notes: Notes) -> None:
    review = Review()
    review.add(record)
    if review.unanswered and not mapping.questions:
        raise BadSample(
            "There is nothing to learn: give text, answer, answers, points, messages, or options with answer_index"
            " (--questions keeps samples that only ask, for evaluation)."
        )
    notes.review.merge(review)


def refuse_lost_pictures(row: Row, left_out: set[str], taken: set[str]) -> None:
    """BadSample where a row seems to have more pictures than those `taken` (files' names), in a column not left out."""
    for name, value in row.items():
        if name in left_out or name in (*KEPT, *FIELDS):
            continue
        for one in value if isinstance(value, list) else [value]:
            named = (
                isinstance(one, str)
                and "://" not in one
                and is_picture(one)
                and Path(one).name not in taken
            )
            if named or holds_picture(one):
                what = shown(one).removeprefix("the text ") if named else "its bytes"
                raise BadSample(
                    f"The column '{name}' seems to hold a picture ({what}) that is not taken; say --image {name}, or"
                    f" --without {name} to leave it out."
                )


def holds_picture(value: Any) -> bool:
    """Whether a cell holds an encoded or decoded picture."""
    if isinstance(value, dict):
        return {"bytes", "path"} <= value.keys() and (value["bytes"] or value["path"]) is not None
    return isinstance(value, (bytes, bytearray)) or hasattr(value, "getexif")


def is_there(value: Any) -> bool:
    """Whether a table's cell is not empty: neither null nor NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _as_text(name: str, value: Any, notes: Notes) -> Any:
    """Whole numbers of a table's columns as text where a text belongs; all else as it is, to be checked later."""
    if name in LISTS_OF_TEXTS and isinstance(value, list):
        return [_as_text("answer", item, notes) for item in value]
    if name in TEXTS and isinstance(value, int) and not isinstance(value, bool):
        notes.counts["whole numbers, written as text"] += 1
        return str(value)
    return value


def _to_json(record: Row, notes: Notes) -> bytes:
    try:
        plain = {name: _plain(value, notes) for name, value in record.items()}
        return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode()
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, BadSample):
            raise
        raise BadSample(f"The record cannot be written as JSON: {error}.") from None


def _plain(value: Any, notes: Notes) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item, notes) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, notes) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        notes.counts["numbers that JSON does not have (NaN, infinity), written as null"] += 1
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (bytes, bytearray)) or holds_picture(value):
        raise BadSample(f"The record holds {shown(value)}, which JSON cannot hold; leave it out.")
    notes.counts[f"values of type {type(value).__name__}, written as text"] += 1
    return str(value)
