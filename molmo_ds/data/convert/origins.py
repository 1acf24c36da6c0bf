"""Origins of samples: rows of a data set, lines of JSON, pictures of a folder, members of other tars.

Each yields items to be made samples of, and faults of what cannot even become one; `passed` counts what is passed over.
"""

import glob
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from webdataset.shardlists import expand_urls

from molmo_ds import files
from molmo_ds.data.convert.foreign import WHAT, is_foreign
from molmo_ds.data.convert.items import Fault, FileItem, MemberItem, RowItem
from molmo_ds.data.convert.pictures import is_picture, printable, to_text
from molmo_ds.data.convert.rows import KEPT, Mapping
from molmo_ds.data.convert.tars import Contents, Member, scan_to_damage
from molmo_ds.data.decode import BadSample
from molmo_ds.data.read.writer import BLOCK
from molmo_ds.data.sample.conversation import shown
from molmo_ds.data.sample.record import read_json

Item = RowItem | FileItem | MemberItem
INDEX = "answer_index"  # a field whose classes stay numbers
BESIDE = ("json", "txt")  # what may hold a picture's annotations, the first before the second


@dataclass
class DataSet:
    """Rows of a Hugging Face data set with undecoded pictures and the names of their classes; keys count the rows."""

    source: str
    mapping: Mapping
    subset: str | None = None
    split: str = "train"
    streaming: bool = False
    root: str = ""
    passed: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Item | Fault]:
        import datasets

        try:
            data = self._undecoded(self._load())
            features = data.features or {}
            self._check_columns(features)
            indices = {column for name, column in self.mapping.columns if name == INDEX}
            classes = {
                name: one
                for name, one in features.items()
                if name not in indices and _has_classes(one)
            }
            for i, row in enumerate(data):
                where = f"row {i} of {self.source}"
                try:
                    row = row | {name: _by_name(one, row[name]) for name, one in classes.items()}
                except ValueError as error:
                    yield Fault(where, str(error))
                    continue
                yield RowItem(where, f"{i:09d}", row, self.root)
        except datasets.exceptions.DatasetsError as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise ValueError(f"The data set {self.source} cannot be read: {error}{cause}") from None

    def _load(self) -> Any:
        import datasets

        folder = Path(self.source)
        if not any(
            (folder / name).is_file()
            for name in ("dataset_info.json", "dataset_dict.json", "state.json")
        ):
            if folder.is_dir() and glob.has_magic(self.source):
                raise ValueError(
                    f"datasets takes the brackets or stars in {self.source} for a pattern; rename the folder."
                )
            if folder.is_file():
                return self._file(folder)
            return datasets.load_dataset(
                self.source, self.subset, split=self.split, streaming=self.streaming
            )
        data = datasets.load_from_disk(self.source)
        if not isinstance(data, datasets.DatasetDict):
            return data
        if self.split not in data:
            raise ValueError(
                f"{self.source} has no split '{self.split}'; give --split, one of {', '.join(data)}."
            )
        return data[self.split]

    def _file(self, path: Path) -> Any:
        import datasets

        kind = path.suffix.removeprefix(".")
        if kind not in ("parquet", "arrow"):
            raise ValueError(
                f"{path} is no data set: give a folder, a hub id or a .parquet or .arrow file (jsonl and csv read"
                " files of these forms)."
            )
        return datasets.load_dataset(
            kind, data_files=str(path), split="train", streaming=self.streaming
        )

    def _undecoded(self, data: Any) -> Any:
        import datasets

        undecoded = datasets.Image(decode=False)
        for name, feature in (data.features or {}).items():
            inner = getattr(feature, "feature", feature)
            if isinstance(inner, datasets.Image):
                data = data.cast_column(
                    name, undecoded if inner is feature else datasets.List(undecoded)
                )
        return data

    def _check_columns(self, features: dict[str, Any]) -> None:
        """ValueError for a picture's column that is not taken and for one of --image or --map that is not there."""
        if not features:
            return  # a stream that does not know them: then each row is looked at
        named = [*self.mapping.images, *(column for _, column in self.mapping.columns)]
        missing = [name for name in named if name not in features]
        if missing:
            raise ValueError(
                f"{self.source} has no column '{missing[0]}'; it has {', '.join(features)}."
            )
        taken = {*self.mapping.picture_columns(features), *self.mapping.without, *KEPT}
        lost = [
            name for name, feature in features.items() if name not in taken and _is_image(feature)
        ]
        if lost:
            raise ValueError(
                f"{self.source} has pictures or other bytes in {', '.join(lost)}, which would be lost;"
                f" say --image {' '.join(lost)}, or --without {' '.join(lost)} to leave them out."
            )


@dataclass
class Lines:
    """Lines of JSON, or a JSON list: pictures are paths below `root`, `key` is optional."""

    path: str
    root: str
    passed: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Item | Fault]:
        if Path(self.path).is_dir():
            raise ValueError(f"{self.path} is a folder; give a file of JSON lines.")
        with open(self.path, "rb") as file:
            start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        whole = start[:1] == b"[" or start[:2] in (b"\xff\xfe", b"\xfe\xff")
        yield from self._whole() if whole else self._lines()

    def _lines(self) -> Iterator[Item | Fault]:
        with open(self.path, "rb") as file:
            for i, line in enumerate(file):
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    yield self._item(i, f"{self.path} line {i + 1}", line)

    def _whole(self) -> Iterator[Item | Fault]:
        text = to_text(Path(self.path).read_bytes(), self.path)
        try:
            rows = read_json(text, once=True)
        except ValueError as error:
            if not text.lstrip().startswith("["):  # lines of UTF-16
                # other separators of lines, as U+2028, may stand in a JSON text
                lines = enumerate(text.split("\n"))
                yield from (
                    self._item(i, f"{self.path} line {i + 1}", line)
                    for i, line in lines
                    if line.strip()
                )
                return
            first = text.lstrip().split("\n", 1)[0]
            raise ValueError(
                f"{self.path} begins like a JSON list ({shown(first[:40])}) but is none: {error}; give one object a"
                " line, or one list of objects."
            ) from None
        for i, row in enumerate(rows if isinstance(rows, list) else [rows]):
            yield self._row(i, f"{self.path} row {i + 1}", row)

    def _item(self, number: int, where: str, line: bytes | str) -> Item | Fault:
        try:
            text = line if isinstance(line, str) else to_text(line, "The line")
            row = read_json(text, once=True)
        except BadSample as error:
            return Fault(where, str(error))
        except ValueError as error:
            return Fault(where, f"The line is not JSON: {error}.")
        return self._row(number, where, row)

    def _row(self, number: int, where: str, row: Any) -> Item | Fault:
        if not isinstance(row, dict):
            return Fault(
                where, f"The row is {shown(row)}, but must be an object with named columns."
            )
        key = row.pop("key", None)
        if key is not None and (isinstance(key, bool) or not isinstance(key, (str, int))):
            return Fault(where, f"'key' is {shown(key)}, but must be a text.")
        return RowItem(where, f"{number:09d}" if key is None else str(key), row, self.root)


@dataclass
class Folder:
    """The pictures below a folder, sorted; links are followed."""

    folder: Path
    passed: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Item | Fault]:
        if not self.folder.is_dir():
            raise ValueError(f"There is no folder {self.folder}.")
        for path in sorted(self._files()):
            folder = path.parent
            beside = self._beside.get((folder, path.stem), {})
            names = [beside[suffix] for suffix in BESIDE if suffix in beside]
            self._read |= set(names[:1])
            key = str(path.relative_to(self.folder).with_suffix("")).replace(".", "_")
            yield FileItem(str(path), key, str(names[0]) if names else None)
        unread = {path for found in self._beside.values() for path in found.values()} - self._read
        for path in unread:
            self.passed[
                f"{path.suffix.lower()} files that belong to no picture, or to one with a .json"
            ] += 1

    def _files(self) -> list[Path]:
        """The pictures; the files of annotations are kept by folder and stem, all else counted."""
        self._beside: dict[tuple[Path, str], dict[str, Path]] = {}
        self._read: set[Path] = set()
        entered = {os.path.realpath(self.folder)}
        found = []
        for where, folders, names in os.walk(self.folder, followlinks=True):
            self._enter(Path(where), folders, entered)
            for name in names:
                path = Path(where, name)
                suffix = path.suffix.lower().removeprefix(".")
                if is_foreign(name):
                    self.passed[WHAT] += 1
                elif is_picture(name):
                    found.append(path)
                elif suffix in BESIDE:
                    beside = self._beside.setdefault((path.parent, path.stem), {})
                    if suffix in beside:  # a.txt and a.TXT
                        self.passed[f".{suffix} files whose name another one spells otherwise"] += 1
                        path = max(path, beside[suffix])
                    beside[suffix] = path
                else:
                    self.passed[f".{suffix} files" if suffix else "files without an extension"] += 1
        return found

    def _enter(self, where: Path, folders: list[str], entered: set[str]) -> None:
        """Drop the folders that are not walked into, and count what that passes over."""
        for name in list(folders):
            real = os.path.realpath(where / name)
            if is_foreign(name):
                self.passed[WHAT] += sum(len(names) for _, _, names in os.walk(where / name))
                folders.remove(name)
            elif real in entered:
                self.passed["links to folders that were walked through already"] += 1
                folders.remove(name)
            elif is_picture(name):
                self.passed["folders named like pictures (what they hold is read)"] += 1
            entered.add(real)


@dataclass
class Tars:
    """The samples of tars; the members of a key need not lie together."""

    tars: list[Path]
    passed: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Item | Fault]:
        for path in self.tars:
            if is_foreign(path.name):
                self.passed[WHAT] += 1
                continue
            contents = scan_to_damage(path)
            self.passed += contents.passed
            groups: dict[str, list[Member]] = {}
            for member in contents.members:
                groups.setdefault(member.key, []).append(member)
            if contents.damage:
                yield _lost(path, contents, groups)
            for key, members in groups.items():
                where = f"{printable(path)}: sample '{printable(key)}'"
                parts = {member.part for member in members}
                if not parts & set(BESIDE) and not any(is_picture("." + part) for part in parts):
                    self.passed.update(
                        f".{part} members that belong to no sample" for part in parts
                    )
                    continue
                yield MemberItem(where, key.lstrip("./"), str(path), tuple(members))


def _lost(path: Path, contents: Contents, groups: dict[str, list[Member]]) -> Fault:
    """The fault of a damaged tar, counted as the samples that its lost bytes would hold; the last of `groups` goes.

    Raises ValueError with the damage where nothing says how many are lost, as of a tar that was cut, or where what is
    there may lack a part.
    """
    last = contents.members[-1] if contents.members else None
    if last is not None:
        groups.pop(last.key)  # may lack a member
    parts = [{member.part for member in members} for members in groups.values()]
    size = path.stat().st_size
    cut = not 0 < contents.end <= size - BLOCK
    if cut or not parts or not all(is_whole(one) for one in parts):
        raise ValueError(contents.damage)
    lost = size - last.start
    rows = max(1, math.ceil(lost * len(groups) / last.start))
    why = (
        f"{contents.damage} From its member {printable(last.key)}.{printable(last.part)} on {lost} bytes are lost, "
        f"counted as {rows} rows."
    )
    return Fault(printable(path), why, rows)


def is_whole(parts: set[str]) -> bool:
    """Whether the parts of a sample are a picture and what is said of it."""
    return bool(parts & set(BESIDE)) and any(is_picture("." + part) for part in parts)


def find_tars(source: str) -> list[Path]:
    """The tars of a path, a pattern (`OLD/*.tar`) or a list as webdataset writes it (`OLD/{000..012}.tar`).

    Raises ValueError where there are none, or where one of a list is missing.
    """
    found = files.find(source)
    if not found and "{" in source:
        listed = expand_urls(source)
        missing = [path for path in listed if not files.find(path)]
        if missing:
            raise ValueError(
                f"There is no tar {missing[0]}, which {source} lists with {len(listed) - 1} others."
            )
        found = [path for each in listed for path in files.find(each)]
    if not found:
        raise ValueError(f"There are no tars at {source}.")
    return [Path(path) for path in found]


def _has_classes(feature: Any) -> bool:
    """Whether a column holds numbers of classes, in lists and structs too."""
    import datasets

    if isinstance(feature, dict):
        return any(_has_classes(one) for name, one in feature.items() if name != INDEX)
    inner = getattr(feature, "feature", None)
    return isinstance(feature, datasets.ClassLabel) or (inner is not None and _has_classes(inner))


def _by_name(feature: Any, value: Any) -> Any:
    """A column's value with the names of classes for their numbers; None for -1, which stands for an unknown one."""
    if value is None or not _has_classes(feature):
        return value
    if isinstance(feature, dict):
        return {
            name: one if name == INDEX else _by_name(feature[name], one)
            for name, one in value.items()
        }
    if hasattr(feature, "feature"):
        return [_by_name(feature.feature, one) for one in value]
    return None if value == -1 else feature.int2str(value)


def _is_image(feature: Any) -> bool:
    import datasets

    inner = getattr(feature, "feature", feature)
    if isinstance(inner, (datasets.Image, datasets.Video)):
        return True
    if isinstance(inner, dict):
        return {"bytes", "path"} <= inner.keys() or any(_is_image(one) for one in inner.values())
    return isinstance(inner, datasets.Value) and inner.dtype in ("binary", "large_binary")
