"""The source of one sample before anything of it is read: small enough to be sent to another process."""

import base64
import binascii
from collections.abc import Mapping as Lookup
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from molmo_ds.data.convert.chats import named_pictures
from molmo_ds.data.convert.pictures import is_picture, printable, read_file, read_text, to_text
from molmo_ds.data.convert.rows import Mapping, Notes, Row, is_there, refuse_lost_pictures
from molmo_ds.data.convert.tars import Member
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.conversation import shown
from molmo_ds.data.sample.record import read_json

Read = tuple[Row, list[bytes]]  # a row without its pictures, and the encoded pictures


@dataclass(frozen=True)
class Fault:
    """Something that cannot become a sample, or as many as `rows` says."""

    where: str
    why: str
    rows: int = 1

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@dataclass(frozen=True)
class RowItem:
    """A row of a data set or a line of JSON; pictures that are paths lie below `root`.

    `fetched` says of addresses where their bytes are, or (a BadSample) why they are not there; `used` are columns that
    its origin has read.
    """

    where: str
    key: str
    row: Row
    root: str
    fetched: Lookup[str, Path | BadSample] = field(default_factory=dict)
    used: frozenset[str] = frozenset()

    def read(self, mapping: Mapping, notes: Notes) -> Read:
        """The row and its pictures; BadSample where one of them cannot be had."""
        row, of_a_form = mapping.familiar(self.row)
        row, named = named_pictures(row)
        notes.columns |= of_a_form
        notes.used |= of_a_form
        columns = filled_columns(row, mapping)
        notes.columns |= {*columns, *self.used}
        notes.used |= {*columns, *self.used}
        values = _pictures(row, columns)
        if values and named:
            raise BadSample(
                f"Pictures are named in '{columns[0]}' and in the turns; say --without {columns[0]} to take the turns'."
            )
        values += [("messages", one) for one in named]
        pictures = [picture_bytes(name, one, self.root, self.fetched) for name, one in values]
        if pictures:
            taken = {Path(one).name for _, one in values if isinstance(one, str)}
            refuse_lost_pictures(row, {*columns, *mapping.without}, taken)
        return {name: value for name, value in row.items() if name not in columns}, pictures

    def addresses(self, mapping: Mapping) -> list[str]:
        """The addresses of its pictures; none for a row that `read` refuses."""
        try:
            row, named = named_pictures(mapping.familiar(self.row)[0])
            values = [one for _, one in _pictures(row, filled_columns(row, mapping))]
        except BadSample:
            return []
        return [one for one in (*values, *named) if is_address(one)]


def filled_columns(row: Row, mapping: Mapping) -> list[str]:
    """The columns of a row whose pictures are taken: all of --image, or the first of ours that is not empty."""
    columns = mapping.picture_columns(row)
    if mapping.images:
        return columns
    return [name for name in columns if is_there(row[name])][:1]


def _pictures(row: Row, columns: list[str]) -> list[tuple[str, Any]]:
    """(column, picture as the row names it); BadSample for null among several."""
    found = []
    for name in columns:
        value = row[name]
        for one in value if isinstance(value, list) else [value]:
            if is_there(one):
                found.append((name, one))
            elif isinstance(value, list):
                raise BadSample(f"'{name}' holds null among its pictures; leave it out.")
    return found


@dataclass(frozen=True)
class FileItem:
    """A picture of a folder with `STEM.json` (a record, annotations, named columns) or `STEM.txt` (a text)."""

    where: str
    key: str
    beside: str | None

    def read(self, mapping: Mapping, notes: Notes) -> Read:
        """The row and its picture; BadSample where one of them cannot be had."""
        if self.beside is None:
            raise BadSample(
                "It has neither a .json nor a .txt file of its name; see docs/reference/data-format.md."
            )
        if self.beside.lower().endswith(".txt"):
            row = {"text": read_text(self.beside).strip()}
        else:
            row = as_row(read_text(self.beside), printable(self.beside))
        self._check_named(row.pop("images", None))
        return row, [read_file(self.where)]

    def _check_named(self, named: Any) -> None:
        """BadSample where `images` of the JSON names other pictures than this, which would be lost."""
        if not named:
            return
        one = named[0] if isinstance(named, list) and len(named) == 1 else None
        # the part of a record of ours, as `jpg`, or the file's name
        own = isinstance(one, str) and (one.isalnum() or Path(one).name == Path(self.where).name)
        if not own:
            raise BadSample(
                f"'images' of {printable(self.beside)} is {shown(named)}, but a sample of a folder has the one picture"
                " next to it; give samples of several as lines of JSON (jsonl)."
            )


@dataclass(frozen=True)
class MemberItem:
    """The members of one key of a tar: pictures in the order of their names, and .json or .txt as in a folder."""

    where: str
    key: str
    tar: str
    members: tuple[Member, ...]

    def read(self, mapping: Mapping, notes: Notes) -> Read:
        """The row and its pictures; BadSample where one of them cannot be had."""
        where = {member.part: member for member in self.members}
        if len(where) < len(self.members):
            raise BadSample(
                f"It holds a part twice: {', '.join(member.part for member in self.members)}."
            )
        row: Row = {}
        if "json" in where:
            row = as_row(to_text(self._bytes(where["json"]), "Its .json"), "Its .json")
        if "txt" in where and "annotations" not in row:
            row |= {"text": to_text(self._bytes(where["txt"]), "Its .txt").strip()}
        shown_parts = sorted(part for part in where if is_picture("." + part))
        named = row.pop("images", None)
        if named is not None and (
            not isinstance(named, list) or not all(isinstance(one, str) for one in named)
        ):
            raise BadSample(f"'images' is {shown(named)}, but must be a list of members' names.")
        missing = [name for name in named or () if name not in where]
        if missing:
            raise BadSample(f"It names the image {missing[0]}, but there is no such member.")
        names = named if named else shown_parts
        for part in where:
            if part not in ("json", "txt") and part not in names:
                notes.counts[f".{part} members, not used"] += 1
        if "txt" in where and "annotations" in row:
            notes.counts[".txt members, not used since .json holds annotations"] += 1
        return row, [self._bytes(where[name]) for name in names]

    def _bytes(self, member: Member) -> bytes:
        with open(self.tar, "rb") as file:
            file.seek(member.offset)
            return file.read(member.length)


def as_row(text: str, where: str) -> Row:
    """The JSON of a picture as a row: an object, or a list of annotations."""
    try:
        value = read_json(text, once=True)
    except ValueError as error:
        raise BadSample(f"{where} is not JSON: {error}.") from None
    if isinstance(value, list):
        return {"annotations": value}
    if not isinstance(value, dict):
        raise BadSample(
            f"{where} is {shown(value)}, but must be an object or a list of annotations."
        )
    return value


def is_address(value: Any) -> bool:
    """Whether a picture is named by a web address."""
    return isinstance(value, str) and value.lower().startswith(("http://", "https://"))


def picture_bytes(
    column: str, value: Any, root: str, fetched: Lookup[str, Path | BadSample]
) -> bytes:
    """The bytes of a picture given as such, as {bytes, path}, base64 of a data: URL, address or path below `root`."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if hasattr(value, "getexif"):
        raise BadSample(f"'{column}' holds a decoded picture; store the files' bytes.")
    if not isinstance(value, str) or not value:
        raise BadSample(f"'{column}' is {shown(value)}, but must be a picture's path or bytes.")
    if value.startswith("data:"):
        return _data_url(column, value)
    if value.startswith("file://"):
        return read_file(unquote(value.removeprefix("file://")))
    if "://" not in value:
        return read_file(Path(root, value))
    place = fetched.get(value)
    if isinstance(place, BadSample):
        raise place
    if place is None:
        raise BadSample(
            f"'{column}' is the address {shown(value)}; fetch the pictures first with --store FOLDER, or give their"
            " paths."
        )
    return read_file(place)


def _data_url(column: str, value: str) -> bytes:
    about, comma, data = value.partition(",")
    if not comma or not about.endswith(";base64"):
        raise BadSample(f"'{column}' is {shown(value)}, but a data: URL must hold base64.")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise BadSample(f"'{column}' is {shown(value)}, which is no base64: {error}.") from None
