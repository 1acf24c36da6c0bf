"""Rows of a public data set: from the hub, from files in its published columns, or from a folder fetched by hand."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from molmo_ds.data.sources.source import Row, Source

LOADERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}


def load(source: Source, split: str, folder: Path | None = None) -> Sequence[Row] | Iterator[Row]:
    """The rows of a split; pictures stay encoded. Those of a set that is not grouped may come one after another.

    `folder` is a file or folder of parquet or JSON files in the published columns (for a set fetched by hand: the DIR
    of its instructions). Raises ValueError for an unknown split, a set that has to be fetched by hand, missing files.
    """
    theirs = source.splits.get(split)
    if theirs is None:
        raise ValueError(f"{source.name} has no split '{split}'; it has {', '.join(source.splits)}.")
    if folder is None and not source.hub:
        raise ValueError(f"{source.name} has to be fetched by hand: {source.by_hand}; then give --from DIR.")
    if folder is not None and source.read:
        rows = _checked(source, source.read, folder, split)
        return list(rows) if source.group else rows
    import datasets

    if folder is None:
        try:
            parts = [datasets.load_dataset(source.hub, name, split=theirs) for name in source.configs or (None,)]
        except OSError as error:  # no network, or not there
            raise ValueError(
                f"{source.hub} cannot be had from the hub ({error}); give --from with its files."
            ) from None
    else:
        names = _files(source, theirs, folder)
        parts = [datasets.load_dataset(LOADERS[names[0].suffix], data_files=[str(n) for n in names], split="train")]
    rows = datasets.concatenate_datasets(parts)
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _checked(source: Source, read: Callable[[Path, str], Iterable[Row]], folder: Path, split: str) -> Iterator[Row]:
    try:
        yield from read(folder, split)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename or error} is missing. For {source.name}: {source.by_hand}.") from None


def _files(source: Source, theirs: str, folder: Path) -> list[Path]:
    """The files of one split (and configuration), told by their paths; a single file is the split."""
    if folder.is_file():
        return [folder]
    names = [path for suffix in LOADERS for path in sorted(folder.rglob(f"*{suffix}"))]
    found = [path for path in names if _speaks_of(theirs, path.relative_to(folder))]
    if not found:
        raise ValueError(f"{folder} has no parquet or JSON file of split '{theirs}' for {source.name}.")
    if len(source.configs) == 1:
        found = [path for path in found if _speaks_of(source.configs[0], path.relative_to(folder))] or found
    return [path for path in found if path.suffix == found[0].suffix]


def _speaks_of(word: str, path: Path) -> bool:
    return re.search(rf"(^|[^a-z]){re.escape(word)}([^a-z]|$)", str(path.with_suffix(""))) is not None
