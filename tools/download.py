"""Download public data sets and write them as indexed shards.

    python tools/download.py pixmo_cap chart_qa --out data --workers 64
    python tools/download.py vqa2 --from /data/vqa2 --split validation --out data
    python tools/download.py --list

First the pictures that a data set names by address go into OUT/pictures, then the shards are written from there into
OUT/NAME-SPLIT. Kill it at any point and give the same command again. docs/datasets.md lists the names.
"""

import argparse
import collections
import contextlib
import glob
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from molmo_ds.data import sources
from molmo_ds.data.decode import BadSample, load_image, read_size, upright_size
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sample.review import Review
from molmo_ds.data.sources import Item, Picture, Row, Source
from molmo_ds.data.sources.diagrams import write_letters
from molmo_ds.data.sources.fetch import Limits, Request, Store, describe, fetch
from molmo_ds.files import local

LOADERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}
TOLD = 50  # rows and annotations of a kind that are printed when they are dropped


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets; see --list")
    parser.add_argument("--list", action="store_true", help="print the table of docs/datasets.md")
    parser.add_argument("--out", type=local, default=Path("data"))
    parser.add_argument(
        "--from", dest="folder", type=local, help="local file, zip or folder; may hold a folder per NAME"
    )
    parser.add_argument("--split", default="train")
    parser.add_argument("--hold-out", type=int, default=0, help="records of a set without validation that become one")
    parser.add_argument("--limit", type=int, help="rows, for a trial")
    parser.add_argument("--max-annotations", type=int, default=24, help="of one record; more become several records")
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=Limits.workers, help="requests under way at once")
    parser.add_argument("--per-host", type=int, default=Limits.per_host)
    parser.add_argument("--attempts", type=int, default=Limits.attempts)
    parser.add_argument("--timeout", type=float, default=Limits.timeout)
    parser.add_argument("--retry-permanent", action="store_true", help="ask again for what was gone for good")
    parser.add_argument("--overwrite", action="store_true", help="write shards that are there already once more")
    args = parser.parse_intermixed_args(argv)
    if args.list:
        print(table())
        return 0
    if not args.names:
        parser.error("give the NAME of a data set, or --list")
    limits = Limits(workers=args.workers, per_host=args.per_host, attempts=args.attempts, timeout=args.timeout)
    try:
        chosen, failed = [sources.get(name) for name in args.names], 0
    except ValueError as error:
        parser.error(str(error))
    for source in chosen:
        try:
            with contextlib.closing(Store(args.out / "pictures")) if source.url else contextlib.nullcontext() as store:
                one(source, args, store, limits)
        except ValueError as error:
            print(f"{source.name}: {error}", file=sys.stderr)
            failed = 1
    return failed


def one(source: Source, args: argparse.Namespace, store: Store | None, limits: Limits) -> None:
    """Fetch and write one data set; ValueError where that cannot be done."""
    target = args.out / f"{source.name}-{args.split}"
    if target.exists() and not args.overwrite:
        print(f"{target} is there already; --overwrite writes it again")
        return
    folder = args.folder
    if folder is not None:
        folder = folder / source.name if (folder / source.name).exists() else folder
        folder = unpack(folder, args.out) if folder.suffix == ".zip" else folder
        if not folder.exists():
            raise ValueError(f"There is no {folder}; give --from a file or folder.")
    rows = load_rows(source, args.split, folder)
    if args.limit is not None:
        rows = (
            rows.select(range(min(args.limit, len(rows))))
            if hasattr(rows, "select")
            else list(itertools.islice(rows, args.limit))
        )
    report = {}
    if source.url:
        report["pictures"] = fetch(requests(source, rows), store, limits, args.retry_permanent)
        print(f"{source.name}: {describe(report['pictures'])}")
    groups = group(source, rows, args.split) if hasattr(rows, "__len__") else {}
    outputs = {}
    if args.hold_out:
        if list(source.splits) != ["train"] or len(groups) <= args.hold_out:
            raise ValueError("--hold-out is for a data set with a training split only, and for a part of it.")
        # by name, so that a picture is held out whatever else the data set holds
        held = set(sorted(groups, key=lambda name: hashlib.sha256(repr(name).encode()).digest())[: args.hold_out])
        outputs[args.out / f"{source.name}-validation"] = [groups.pop(name) for name in list(groups) if name in held]
    outputs[target] = list(groups.values())
    for path, chosen in outputs.items():
        dropped: Counter = Counter()
        batches = tqdm(take(rows, chosen), total=len(chosen) or None, unit="record", desc=path.name)
        samples = records(source, batches, args, reader(store, folder), dropped)
        report["records"] = write(samples, path, source, args.samples_per_shard, dropped)
        report["dropped"] = dict(dropped)
        (path / "report.json").write_text(json.dumps(report, indent=1))
        print(f"{path}: {report['records']} records" + "".join(f"; {n} dropped: {why}" for why, n in dropped.items()))


def load_rows(source: Source, split: str, folder: Path | None = None) -> Sequence[Row] | Iterator[Row]:
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
        rows = checked(source, source.read, folder, split)
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
        names = split_files(source, theirs, folder)
        parts = [
            datasets.load_dataset(
                LOADERS[names[0].suffix], data_files=[glob.escape(str(n)) for n in names], split="train"
            )
        ]
    rows = datasets.concatenate_datasets(parts)
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def checked(source: Source, read: Callable[[Path, str], Iterable[Row]], folder: Path, split: str) -> Iterator[Row]:
    try:
        yield from read(folder, split)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename or error} is missing. For {source.name}: {source.by_hand}.") from None


def split_files(source: Source, theirs: str, folder: Path) -> list[Path]:
    """The files of one split (and configuration), told by their paths; a single file is the split."""
    if folder.is_file():
        return [folder]
    names = [path for suffix in LOADERS for path in sorted(folder.rglob(f"*{suffix}"))]
    found = [path for path in names if speaks_of(theirs, path.relative_to(folder))]
    if not found:
        raise ValueError(f"{folder} has no parquet or JSON file of split '{theirs}' for {source.name}.")
    if len(source.configs) == 1:
        found = [path for path in found if speaks_of(source.configs[0], path.relative_to(folder))] or found
    return [path for path in found if path.suffix == found[0].suffix]


def speaks_of(word: str, path: Path) -> bool:
    return re.search(rf"(^|[^a-z]){re.escape(word)}([^a-z]|$)", str(path.with_suffix(""))) is not None


def write(
    samples: Iterator[tuple[str, dict[str, bytes]]], path: Path, source: Source, per_shard: int, dropped: Counter
) -> int:
    """Write the shards under a temporary name and rename the folder when it is whole; returns the number of records."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    head, count = list(itertools.islice(samples, 1)), Counter()
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
    return list(dict.fromkeys(Request(u, (h or "").lower()) for u, h in zip(column(rows, source.url), hashes)))


def column(rows: Sequence[Row], name: str) -> list:
    """One column, without reading the others where the rows are a `datasets.Dataset`."""
    if hasattr(rows, "column_names"):
        if name not in rows.column_names:
            raise ValueError(f"the rows have no column '{name}'; they have {', '.join(rows.column_names)}.")
        return list(rows[name])
    return [row[name] for row in rows]


def group(source: Source, rows: Sequence[Row], split: str) -> dict[object, list[int]]:
    """Row numbers by picture in the order of first appearance; each on its own in evaluation."""
    if not source.group or split != "train":
        return {i: [i] for i in range(len(rows))}
    names = column(rows, source.group)
    if source.sha256:  # an address that promises two different pictures
        names = list(zip(names, column(rows, source.sha256)))
    found = collections.defaultdict(list)
    for i, name in enumerate(names):
        found[name].append(i)
    return found


def take(rows: Iterable[Row], groups: list[list[int]]) -> Iterator[tuple[int, list[Row]]]:
    """(number of the first row, rows) of each group; without groups every row is one."""
    if not groups:
        yield from ((i, [row]) for i, row in enumerate(rows))
    else:
        yield from ((numbers[0], [rows[i] for i in numbers]) for numbers in groups)


def records(
    source: Source,
    batches: Iterable[tuple[int, list[Row]]],
    args: argparse.Namespace,
    read: Callable[[Picture], bytes | None],
    dropped: Counter,
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples for `write_shards`; `dropped` counts what gave none."""
    for number, rows in batches:
        items = adapted(source, rows, args.split, dropped)
        if not items:
            dropped["no usable annotation"] += 1
        if source.group and args.split == "train" and items:
            items = merge(items, args.max_annotations)
        for k, item in enumerate(items):
            sample = encode(item, read, dropped)
            if isinstance(sample, str):
                dropped[sample] += 1
            else:
                yield f"{source.name}-{number:08d}" + (f"-{k}" if len(items) > 1 else ""), sample


def merge(items: list[Item], most: int) -> list[Item]:
    """Items of one picture as one record with all annotations, or as several of nearly the same size."""
    annotations = [a for item in items for a in item.annotations]
    shared = {k: v for k, v in items[0].metadata.items() if all(item.metadata.get(k) == v for item in items)}
    n = math.ceil(len(annotations) / most)
    bounds = [len(annotations) * i // n for i in range(n + 1)]
    return [Item(items[0].pictures, annotations[a:b], shared) for a, b in zip(bounds, bounds[1:])]


def reader(store: Store | None, folder: Path | None) -> Callable[[Picture], bytes | None]:
    """What gives a picture's bytes: the row itself, the store, or a file below `folder`."""

    def read(picture: Picture) -> bytes | None:
        if picture.url:
            return store.read(Request(picture.url, picture.sha256))
        if picture.data:
            return picture.data
        path = (folder if folder and folder.is_dir() else Path()) / picture.path
        return path.read_bytes() if path.is_file() else None

    return read


def adapted(source: Source, rows: list[Row], split: str, dropped: Counter) -> list[Item]:
    """The items of rows; a row whose columns hold what the adapter does not expect is counted and told."""
    items: list[Item] = []
    for row in rows:
        try:
            items += source.adapt(row, split)
        except KeyError as error:
            raise ValueError(f"the rows have no column {error}; they have {', '.join(row)}.") from None
        except (TypeError, ValueError, AttributeError, IndexError, SyntaxError) as error:
            tell("row that cannot be read", f"{type(error).__name__}: {error} in {str(row)[:200]}", dropped)
    return items


def tell(what: str, why: str, dropped: Counter) -> None:
    """Count what is dropped, and print why of the first ones."""
    dropped[what] += 1
    if dropped[what] <= TOLD:
        print(f"dropped a {what}: {why}", file=sys.stderr)


def encode(item: Item, read: Callable[[Picture], bytes | None], dropped: Counter) -> dict[str, bytes] | str:
    """The parts of a sample (docs/reference/data-format.md), or why there is none; useless annotations go."""
    parts = {}
    for n, picture in enumerate(item.pictures):
        data = read(picture)
        if data is None:
            return "picture not reachable" if picture.url else "picture file missing"
        try:
            kind, data = part(data, picture)
        except BadSample:
            return "picture cannot be read"
        parts[kind if len(item.pictures) == 1 else f"{n}.{kind}"] = data
    record = {"images": list(parts), "annotations": [], "metadata": item.metadata}
    sizes = [upright_size(*read_size(data)) for data in parts.values()]
    for annotation in item.annotations:
        try:
            Review().add(record | {"annotations": [annotation], "sizes": sizes})
            record["annotations"].append(annotation)
        except BadSample as error:
            tell("annotation that cannot be used", str(error), dropped)
    if not record["annotations"]:
        return "no usable annotation"
    try:
        return {**parts, "json": json.dumps(record, ensure_ascii=False, allow_nan=False).encode()}
    except ValueError as error:  # NaN, or half a character
        return f"metadata that JSON cannot hold ({error})"


def part(data: bytes, picture: Picture) -> tuple[str, bytes]:
    """(jpg | png | webp, bytes): as they came where shards may hold them so, else as PNG. Raises BadSample."""
    kind = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)
    if kind and not picture.letters:
        read_size(data)
        return kind, data
    image = Image.fromarray(load_image(data))
    buffer = io.BytesIO()
    (write_letters(image, picture) if picture.letters else image).save(buffer, "PNG")
    return "png", buffer.getvalue()


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
        where = f"hub: {source.hub}" + (f" ({source.configs[0]})" if len(source.configs) == 1 else "")
        seen = source.layout if source.confirmed else f"**not confirmed**: {source.layout}"
        where = where + (", pictures by address" if source.url else "") if source.hub else f"by hand: {source.by_hand}"
        lines.append(f"| `{source.name}` | {', '.join(source.splits)} | {where} | {source.licence} | {seen} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
