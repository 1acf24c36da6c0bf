"""The rows of a published split, from the hub or from files, and which of them make one record."""

import collections
import glob
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from molmo_ds.data.sources.source import Row, Source

LOADERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}


def load_rows(
    source: Source, split: str, folder: Path | None = None
) -> Sequence[Row] | Iterator[Row]:
    """The rows of a split; pictures stay encoded. Those of a set that is not grouped may come one after another.

    `folder` is a file or folder of parquet or JSON files in the published columns (for a set fetched by hand: the DIR
    of its instructions). Raises ValueError for an unknown split, a set that has to be fetched by hand, missing files.
    """
    theirs = source.splits.get(split)
    if theirs is None:
        raise ValueError(
            f"{source.name} has no split '{split}'; it has {', '.join(source.splits)}."
        )
    if folder is None and not source.hub and not source.own:
        raise ValueError(
            f"{source.name} has to be fetched by hand: {source.by_hand}; then give --from DIR."
        )
    if source.read and (folder is not None or source.own):
        rows = checked(source, source.read, folder, split)
        return list(rows) if source.group else rows
    import datasets

    if folder is None:
        try:
            parts = [
                datasets.load_dataset(source.hub, name, split=theirs)
                for name in source.configs or (None,)
            ]
        except OSError as error:  # no network, or not there
            raise ValueError(
                f"{source.hub} cannot be had from the hub ({error}); give --from with its files."
            ) from None
    else:
        names = split_files(source, theirs, folder)
        parts = [
            datasets.load_dataset(
                LOADERS[names[0].suffix],
                data_files=[glob.escape(str(n)) for n in names],
                split="train",
            )
        ]
    rows = datasets.concatenate_datasets(parts)
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def checked(
    source: Source, read: Callable[[Path, str], Iterable[Row]], folder: Path, split: str
) -> Iterator[Row]:
    try:
        yield from read(folder, split)
    except FileNotFoundError as error:
        raise ValueError(
            f"{error.filename or error} is missing. For {source.name}: {source.by_hand}."
        ) from None
    except KeyError as error:
        raise ValueError(
            f"A file of {source.name} has no column {error}; it is not as published. {source.by_hand}."
        ) from None


def split_files(source: Source, theirs: str, folder: Path) -> list[Path]:
    """The files of one split (and configuration), told by their paths; a single file is the split."""
    if folder.is_file():
        return [folder]
    names = [path for suffix in LOADERS for path in sorted(folder.rglob(f"*{suffix}"))]
    found = [path for path in names if speaks_of(theirs, path.relative_to(folder))]
    if not found:
        raise ValueError(
            f"{folder} has no parquet or JSON file of split '{theirs}' for {source.name}."
        )
    if len(source.configs) == 1:
        found = of_config(source.configs[0], found, folder) or found
    return [path for path in found if path.suffix == found[0].suffix]


def of_config(name: str, paths: list[Path], folder: Path) -> list[Path]:
    """The files of one configuration: those of its folder, as the hub has them, or else those that name it.

    The folder single_point_track/ is none of the configuration `track`.
    """
    inside = [path for path in paths if name in path.relative_to(folder).parts[:-1]]
    return inside or [path for path in paths if speaks_of(name, path.relative_to(folder))]


def speaks_of(word: str, path: Path) -> bool:
    return (
        re.search(rf"(^|[^a-z]){re.escape(word)}([^a-z]|$)", str(path.with_suffix(""))) is not None
    )


def column(rows: Sequence[Row], name: str) -> list:
    """One column, without reading the others where the rows are a `datasets.Dataset`."""
    if hasattr(rows, "column_names"):
        if name not in rows.column_names:
            raise ValueError(
                f"the rows have no column '{name}'; they have {', '.join(rows.column_names)}."
            )
        return list(rows[name])
    return [row[name] for row in rows]


def chosen(
    source: Source,
    rows: Sequence[Row],
    forbidden: set[str],
    dropped: Counter,
) -> list[int]:
    """The numbers of the rows that belong to the set and show no picture of `forbidden`, by address or hash."""
    numbers = list(range(len(rows)))
    name, wanted = source.only
    if name:
        held = column(rows, name)
        numbers = [number for number in numbers if held[number] == wanted]
        dropped[f"row whose {name} is not {wanted}"] += len(rows) - len(numbers)
    if forbidden:
        names = known_names(source, rows)
        kept = [n for n in numbers if not names[n] & forbidden]
        dropped[f"row of a picture of {source.without}"] += len(numbers) - len(kept)
        numbers = kept
    return numbers


def addresses(value: str | Sequence[str]) -> list[str]:
    """The addresses in a row's column, which holds one, or a list of them."""
    return [value] if isinstance(value, str) else list(value)


def known_names(source: Source, rows: Sequence[Row]) -> list[set[str]]:
    """The addresses of each row's pictures and, where they are published, their hashes in small letters."""
    names = [set(addresses(value)) for value in column(rows, source.url)]
    if source.sha256:
        for known, value in zip(names, column(rows, source.sha256)):
            known.add((value or "").lower())
    return names


def pictures(source: Source, rows: Sequence[Row]) -> list[object]:
    """The name of each row's picture: its address, and its hash where an address may promise two pictures."""
    names = column(rows, source.group or source.url)
    return list(zip(names, column(rows, source.sha256))) if source.sha256 else names


def group(
    source: Source, rows: Sequence[Row], split: str, numbers: Sequence[int]
) -> dict[object, list[int]]:
    """Of the rows of these numbers, those of one record, in the order of first appearance; in evaluation one each."""
    if not source.group or split != "train":
        return {number: [number] for number in numbers}
    names = pictures(source, rows)
    found = collections.defaultdict(list)
    for number in numbers:
        found[names[number]].append(number)
    return found


def take(rows: Iterable[Row], groups: list[list[int]]) -> Iterator[tuple[int, list[Row]]]:
    """(number of the first row, rows) of each group; without groups every row is one."""
    if not groups:
        yield from ((i, [row]) for i, row in enumerate(rows))
    else:
        yield from ((numbers[0], [rows[i] for i in numbers]) for numbers in groups)
