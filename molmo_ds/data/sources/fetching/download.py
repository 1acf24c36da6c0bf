"""One public data set, from where it is published to indexed shards.

First the pictures that a data set names by address go into OUT/pictures, then the shards are written from there into
OUT/NAME-SPLIT. It may be killed at any point and begun again.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from molmo_ds.data import sources
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sources.fetching.fetch import Limits, describe, fetch
from molmo_ds.data.sources.fetching.records import reader, records
from molmo_ds.data.sources.fetching.rows import (
    addresses,
    chosen,
    column,
    group,
    known_names,
    load_rows,
    pictures,
    take,
)
from molmo_ds.data.sources.fetching.store import Request, Store
from molmo_ds.data.sources.source import Row, Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a download, and of the way to records."""

    out: Path
    folder: Path | None  # local file, zip or folder; may hold a folder per data set
    split: str
    hold_out: int  # records of a set without validation that become one
    limit: int | None  # rows, for a trial
    cut: dict[str, int | bool]  # fields of Cut, instead of the data set's own
    evaluation_pictures: bool  # keep those that the set leaves out of training
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
        refuse_other_meaning(source, target)
        print(f"{target} is there already; --overwrite writes it again")
        return
    folder = folder_of(source, options)
    rows = load_rows(source, options.split, folder)
    left_out: Counter = Counter()
    groups: dict[object, list[int]] = {}
    report: dict = {"source": source.name}
    if hasattr(rows, "__len__"):
        numbers = chosen(source, rows, forbidden_pictures(source, options), left_out)
        numbers = numbers[: options.limit]
        if source.url:
            wanted = requests(source, rows, numbers)
            report["pictures"] = fetch(wanted, store, limits, options.retry_permanent)
            print(f"{source.name}: {describe(report['pictures'])}")
        groups = group(source, rows, options.split, numbers)
    else:
        rows = itertools.islice(rows, options.limit)
    outputs = {}
    if options.hold_out:
        held = hold_out(source, rows, groups, options.hold_out)
        outputs[options.out / f"{source.name}-validation"] = [groups.pop(name) for name in held]
    outputs[target] = list(groups.values())
    how = dataclasses.replace(source.cut, **options.cut)
    for path, taken in outputs.items():
        dropped = left_out if path == target else Counter()
        batches = tqdm(take(rows, taken), total=len(taken) or None, unit="record", desc=path.name)
        find = reader(store, folder)
        changed: Counter = Counter()
        samples = records(source, batches, options.split, how, find, dropped, changed)
        report["cut"] = dataclasses.asdict(how)
        report["records"] = write(samples, path, source, options.samples_per_shard, dropped)
        report["dropped"] = {why: count for why, count in dropped.items() if count}
        report["changed"] = {what: count for what, count in changed.items() if count}
        (path / "report.json").write_text(json.dumps(report, indent=1))
        print(f"{path}: {report['records']} records{said(report)}")


def said(report: dict) -> str:
    """What a report says of rows that were dropped or changed, in words after the number of records."""
    dropped = [f"; {count} dropped: {why}" for why, count in report["dropped"].items()]
    return "".join(dropped + [f"; {count} {what}" for what, count in report["changed"].items()])


def folder_of(source: Source, options: Options) -> Path | None:
    """The folder or file of the published rows, a zip unpacked; None where they come from the hub."""
    folder = options.folder
    if folder is None:
        return None
    found = [folder / name for name in (source.name, *source.aliases) if (folder / name).exists()]
    folder = found[0] if found else folder
    folder = unpack(folder, options.out) if folder.suffix == ".zip" else folder
    if not folder.exists():
        raise ValueError(f"There is no {folder}; give --from a file or folder.")
    return folder


def refuse_other_meaning(source: Source, target: Path) -> None:
    """ValueError where a folder was written when the set's name meant something else."""
    note = target / "report.json"
    if source.changed and note.exists() and "source" not in json.loads(note.read_text()):
        raise ValueError(
            f"{target} was written by an earlier version. {source.changed} Rename the folder, or give --overwrite."
        )


def forbidden_pictures(source: Source, options: Options) -> set[str]:
    """Addresses and hashes of the pictures that may not be learnt; ValueError where their list cannot be had."""
    if not source.without or options.split != "train" or options.evaluation_pictures:
        return set()
    other = sources.get(source.without)
    # a folder that holds no folder of the evaluation set holds this set's rows
    there = options.folder and (options.folder / other.name).exists()
    folder = folder_of(other, options) if there else None
    try:
        rows = load_rows(other, "test", folder)
    except ValueError as error:
        raise ValueError(
            f"the pictures of {other.name} must be left out, and their list is missing: {error} Put its files into"
            f" {options.folder or 'DIR'}/{other.name}, or keep its pictures with --evaluation-pictures."
        ) from None
    return set().union(*known_names(other, rows)) - {""}


def hold_out(
    source: Source, rows: Sequence[Row], groups: dict[object, list[int]], count: int
) -> list[object]:
    """The names of the groups that show one of `count` pictures, chosen by the hash of their names."""
    if list(source.splits) != ["train"] or len(groups) <= count:
        raise ValueError(
            "--hold-out is for a data set with a training split only, and for a part of it."
        )
    names = pictures(source, rows) if source.url else list(range(len(rows)))
    picture_of = {group: names[numbers[0]] for group, numbers in groups.items()}
    # by name, so that a picture is held out whatever else the data set holds
    order = sorted(
        set(picture_of.values()), key=lambda name: hashlib.sha256(repr(name).encode()).digest()
    )
    held = set(order[:count])
    return [group for group, name in picture_of.items() if name in held]


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


def requests(source: Source, rows: Sequence[Row], numbers: Sequence[int]) -> list[Request]:
    """The pictures that the rows of these numbers name, each once."""
    urls = column(rows, source.url)
    hashes = column(rows, source.sha256) if source.sha256 else [""] * len(rows)
    found = [
        Request(url, (hashes[number] or "").lower())
        for number in numbers
        for url in addresses(urls[number])
    ]
    return list(dict.fromkeys(found))


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
        "| name | other names | splits | where | licence of the annotations | layout seen in |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for source in sources.ALL.values():
        where = f"hub: {source.hub}" + (
            f" ({source.configs[0]})" if len(source.configs) == 1 else ""
        )
        seen = source.layout if source.confirmed else f"**not confirmed**: {source.layout}"
        where = (
            where
            + (", pictures by address" if source.url else "")
            + (", pictures or videos by hand" if source.by_hand else "")
            if source.hub
            else f"by hand: {source.by_hand}"
        )
        others = ", ".join(f"`{alias}`" for alias in source.aliases)
        columns = (others, ", ".join(source.splits), where, source.licence, seen)
        lines.append(f"| `{source.name}` | {' | '.join(columns)} |")
    return "\n".join(lines)
