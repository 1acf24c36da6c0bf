"""CSV files as rows; where a row holds one point or box, the rows of a picture and label are put together."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from molmo_ds.data.convert.items import Fault, RowItem
from molmo_ds.data.convert.pictures import read_text
from molmo_ds.data.convert.rows import FIELDS, KEPT, Mapping
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.annotation import Annotation
from molmo_ds.data.sample.conversation import shown
from molmo_ds.data.sample.question import label_of

Row = dict[str, Any]
DELIMITERS = (",", ";", "\t")
TEXTS = ("style", "question", "text", "answer", "label")  # cells of these fields are never JSON
NUMBERS = ("weight", "answer_index", "point_scale", "unlabelled", "num_frames")  # or true and false
SPREAD = {"points": 2, "boxes": 4}  # fields that --map may spread over columns, a number in each


@dataclass
class Table:
    """Rows of a CSV file with a header line: empty cells are absent, lists are JSON, all else is text."""

    path: str
    root: str
    mapping: Mapping
    passed: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[RowItem | Fault]:
        """Raises ValueError for a file that is no table, or lacks a named column."""
        rows = list(self._rows())
        spread = {
            name: columns.split(",") for name, columns in self.mapping.columns if "," in columns
        }
        if not spread:
            yield from rows
            return
        if len(spread) > 1 or not spread.keys() <= SPREAD.keys():
            raise ValueError(
                f"--map spreads {', '.join(spread)} over columns; only points=X,Y or boxes=A,B,C,D can be."
            )
        ((name, columns),) = spread.items()
        if len(columns) != SPREAD[name]:
            raise ValueError(f"--map gives {name} {len(columns)} columns; it has {SPREAD[name]}.")
        yield from self._together(rows, name, columns)

    def _rows(self) -> Iterator[RowItem | Fault]:
        try:
            text = read_text(self.path)
        except BadSample as error:
            raise ValueError(str(error)) from None
        head = text.split("\n", 1)[0]
        delimiter = max(DELIMITERS, key=head.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(reader, [])]
        self._check(names)
        while True:
            where = f"{self.path} line {reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise ValueError(f"{where} is no CSV: {error}.") from None
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) != len(names):
                yield Fault(where, f"It has {len(cells)} cells, and the header {len(names)}.")
                continue
            yield self._row(where, reader.line_num, dict(zip(names, cells)))

    def _check(self, names: list[str]) -> None:
        named = [*self.mapping.images, *self.mapping.without]
        named += [one for _, columns in self.mapping.columns for one in columns.split(",")]
        missing = [name for name in named if name not in names]
        if missing:
            raise ValueError(
                f"{self.path} has no column '{missing[0]}'; its first line names {', '.join(names)}."
            )
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"{self.path} has two columns '{twice[0]}'; rename one.")

    def _row(self, where: str, number: int, cells: dict[str, str]) -> RowItem | Fault:
        fields = {column: name for name, column in self.mapping.columns}
        row: Row = {}
        for name, cell in cells.items():
            try:
                row[name] = _value(fields.get(name, name), cell)
            except ValueError:
                return Fault(where, f"'{name}' is {shown(cell)}, which is neither JSON nor a text.")
        key = row.get("key")
        key = f"{number:09d}" if key is None else str(key)
        return RowItem(where, key, row, self.root, used=frozenset({"key"}))

    def _together(
        self, rows: list[RowItem | Fault], name: str, columns: list[str]
    ) -> Iterator[RowItem | Fault]:
        """One sample a picture, one annotation for each group of rows with the same label and question.

        A row that cannot be used takes its group along, whose points would be incomplete without it.
        """
        broken = [one for one in rows if isinstance(one, Fault)]
        if broken:
            raise ValueError(
                f"{broken[0]} Without that row the points of a picture would be incomplete; mend the file."
            )
        samples: dict[str, list[RowItem]] = {}
        for item in rows:
            shown_in = [_one_name(item.row[one]) for one in self.mapping.picture_columns(item.row)]
            samples.setdefault(json.dumps(shown_in), []).append(item)
        for items in samples.values():
            yield self._sample(items, name, columns)

    def _sample(self, items: list[RowItem], name: str, columns: list[str]) -> RowItem | Fault:
        first = items[0]
        plain = {field: column for field, column in self.mapping.columns if field != name}
        names = {field: field for field in (*FIELDS, "style") if field in first.row} | plain
        answers: dict[tuple[str | None, ...], tuple[Row, list[list[float]]]] = {}
        for item in items:
            fields = {field: _trimmed(item.row[column]) for field, column in names.items()}
            fields = {field: value for field, value in fields.items() if value is not None}
            style = self.mapping.style or fields.get("style")
            if not style:
                return Fault(item.where, "It has no style; give --style, for example pointing.")
            try:
                place = [float(str(item.row[column]).strip()) for column in columns]
            except ValueError:
                cells = ", ".join(str(item.row[column]) for column in columns)
                return Fault(
                    item.where,
                    f"{name} is ({cells}), but must be {len(columns)} numbers; the picture is left out, since its"
                    " points would be incomplete.",
                )
            fields["style"] = style
            asked = (style, _as_written(style, fields.get("label")), fields.get("question"))
            earlier, places = answers.setdefault(asked, (fields, []))
            other = _differing(earlier, fields)
            if other:
                return Fault(
                    item.where,
                    f"Its '{other}' is not that of an earlier row with the same picture, label and question; the"
                    " picture is left out, since its points would be incomplete.",
                )
            for column in KEPT:
                if item.row.get(column) != first.row.get(column):
                    self.passed[f"cells of '{column}' unlike the first of their picture"] += 1
            if place in places:  # it would be counted twice
                self.passed[f"{name} that a label has twice at one place"] += 1
                continue
            places.append(place)
        used = frozenset({*names.values(), *columns, ",".join(columns)})
        row = {one: value for one, value in first.row.items() if one not in used}
        row["annotations"] = [fields | {name: places} for fields, places in answers.values()]
        return RowItem(first.where, first.key, row, self.root, used=used | first.used)


def _one_name(picture: Any) -> Any:
    """A path by the shortest of its names, so that `./a.jpg` and `a.jpg` are one picture."""
    is_path = isinstance(picture, str) and "://" not in picture
    return os.path.normpath(picture.strip()) if is_path else picture


def _as_written(style: str, label: str | None) -> str | None:
    """A label as training writes it, so that `Cat` and `cat` are one where it is in small letters."""
    return label_of(style, Annotation(label=label)) if label else label


def _differing(one: Row, other: Row) -> str | None:
    """A field but the label in which two rows differ."""
    names = [name for name in {**one, **other} if name != "label"]
    return next((name for name in names if one.get(name) != other.get(name)), None)


def _trimmed(cell: Any) -> Any:
    """A text without blanks around it: `cat ` is no other label than `cat`."""
    return cell.strip() if isinstance(cell, str) else cell


def _value(field: str, cell: str) -> Any:
    """None for an empty cell, what JSON says of a number or a list, else the text."""
    text = cell.strip()
    if not text:
        return None
    is_json = field in NUMBERS or (field not in TEXTS and text[0] in "[{")
    return json.loads(text) if is_json else cell
