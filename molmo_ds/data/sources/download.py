"""One public data set, from where it is published to indexed shards.

First the pictures that a data set names by address go into OUT/pictures, then the shards are written from there into
OUT/NAME-SPLIT. It may be killed at any point and begun again.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from molmo_ds.data import sources
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sources.fetch import Limits, describe, fetch
from molmo_ds.data.sources.records import reader, records
from molmo_ds.data.sources.rows import column, group, load_rows, take
from molmo_ds.data.sources.source import Row, Source
from molmo_ds.data.sources.store import Request, Store


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a download, and of the way to records."""

    out: Path
    folder: Path | None  # local file, zip or folder; may hold a folder per data set
    split: str
    hold_out: int  # records of a set without validation that become one
    limit: int | None  # rows, for a trial
    max_annotations: int  # of one record
    samples_per_shard: int
    retry_permanent: bool
    overwrite: bool


def download(source: Source, options: Options, limits: Limits) -> None:
    """Fetch and write one data set; ValueError where that cannot be done."""
    if not source.url:
        fetch_and_write(source, options, limits, None)
        return
    with contextlib.closing(Store(options.out / "pictures")) as store:
        fetch_and_write(source, options, limits, store)


def fetch_and_write(source: Source, options: Options, limits: Limits, store: Store | None) -> None:
    """The same; `store` holds pictures that were fetched by address."""
    target = options.out / f"{source.name}-{options.split}"
    if target.exists() and not options.overwrite:
        print(f"{target} is there already; --overwrite writes it again")
        return
    folder = options.folder
    if folder is not None:
        folder = folder / source.name if (folder / source.name).exists() else folder
        folder = unpack(folder, options.out) if folder.suffix == ".zip" else folder
        if not folder.exists():
            raise ValueError(f"There is no {folder}; give --from a file or folder.")
    rows = load_rows(source, options.split, folder)
    if options.limit is not None:
        rows = (
            rows.select(range(min(options.limit, len(rows))))
            if hasattr(rows, "select")
            else list(itertools.islice(rows, options.limit))
        )
    report = {}
    if source.url:
        report["pictures"] = fetch(requests(source, rows), store, limits, options.retry_permanent)
        print(f"{source.name}: {describe(report['pictures'])}")
    groups = group(source, rows, options.split) if hasattr(rows, "__len__") else {}
    outputs = {}
    if options.hold_out:
        if list(source.splits) != ["train"] or len(groups) <= options.hold_out:
            raise ValueError(
                "--hold-out is for a data set with a training split only, and for a part of it."
            )
        # by name, so that a picture is held out whatever else the data set holds
        held = set(
            sorted(groups, key=lambda name: hashlib.sha256(repr(name).encode()).digest())[
                : options.hold_out
            ]
        )
        outputs[options.out / f"{source.name}-validation"] = [
            groups.pop(name) for name in list(groups) if name in held
        ]
    outputs[target] = list(groups.values())
    for path, chosen in outputs.items():
        dropped: Counter = Counter()
        batches = tqdm(take(rows, chosen), total=len(chosen) or None, unit="record", desc=path.name)
        samples = records(
            source, batches, options.split, options.max_annotations, reader(store, folder), dropped
        )
        report["records"] = write(samples, path, source, options.samples_per_shard, dropped)
        report["dropped"] = dict(dropped)
        (path / "report.json").write_text(json.dumps(report, indent=1))
        print(
            f"{path}: {report['records']} records"
            + "".join(f"; {n} dropped: {why}" for why, n in dropped.items())
        )


def write(
    samples: Iterator[tuple[str, dict[str, bytes]]],
    path: Path,
    source: Source,
    per_shard: int,
    dropped: Counter,
) -> int:
    """Write the shards under a temporary name and rename the folder when it is whole; returns the number of records."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    head = list(itertools.islice(samples, 1))
    count = Counter()
    if not head:
        why = ", ".join(f"{why} ({n})" for why, n in dropped.items()) or "there are no rows"
        raise ValueError(f"there is no record to write: {why}. {source.by_hand}")

    def counted() -> Iterator[tuple[str, dict[str, bytes]]]:
        for sample in itertools.chain(head, samples):
            count["records"] += 1
            yield sample

    write_shards(counted(), partial, source.name, per_shard)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(partial, path)
    return count["records"]


def requests(source: Source, rows: Sequence[Row]) -> list[Request]:
    """The pictures that the rows name, each once."""
    hashes = column(rows, source.sha256) if source.sha256 else [""] * len(rows)
    return list(
        dict.fromkeys(
            Request(u, (h or "").lower()) for u, h in zip(column(rows, source.url), hashes)
        )
    )


def unpack(path: Path, out: Path) -> Path:
    """The folder that a zip was unpacked into, once."""
    target = out / "unpacked" / path.stem
    if not target.exists():
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with zipfile.ZipFile(path) as archive:
            archive.extractall(partial)
        os.replace(partial, target)
    return target


def table() -> str:
    """The registry in Markdown."""
    lines = [
        "| name | splits | where | licence of the annotations | layout seen in |",
        "| --- | --- | --- | --- | --- |",
    ]
    for source in sources.ALL.values():
        where = f"hub: {source.hub}" + (
            f" ({source.configs[0]})" if len(source.configs) == 1 else ""
        )
        seen = source.layout if source.confirmed else f"**not confirmed**: {source.layout}"
        where = (
            where + (", pictures by address" if source.url else "")
            if source.hub
            else f"by hand: {source.by_hand}"
        )
        lines.append(
            f"| `{source.name}` | {', '.join(source.splits)} | {where} | {source.licence} | {seen} |"
        )
    return "\n".join(lines)
