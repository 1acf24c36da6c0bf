"""Write shards from a Hugging Face data set, a folder, JSON lines, CSV or other tars; index others' tars; make some up.

    dataset NAME_OR_FOLDER OUT --style vqa2 --map question=query answer=label
    folder PICTURES OUT --style long_caption
    jsonl FILE.jsonl OUT --root PICTURES
    csv FILE.csv OUT --style pointing --map points=x,y --points-in pixels
    tars 'OLD/*.tar' OUT --style long_caption        (or OLD/{000..012}.tar, as webdataset writes it)
    index FOLDER
    made-up FOLDER [--family molmo2] [--pictures 8] [--seed 0]      (every set of a family's recipes, for rehearsals)

Rows that cannot be used are skipped, each with a sentence on stderr; above --max-bad-share nothing is written. The last
line says how many samples there are and what was skipped, passed over or changed.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from molmo_ds.cli.make_shards_options import parse
from molmo_ds.data.convert import indexing
from molmo_ds.data.convert.conversion import Outcome, Plan, convert, summary
from molmo_ds.data.convert.fetched import Fetched
from molmo_ds.data.convert.origins import DataSet, Folder, Lines, Tars, find_tars
from molmo_ds.data.convert.rows import Mapping
from molmo_ds.data.convert.table import Table
from molmo_ds.data.made_up.write import write_made_up
from molmo_ds.data.read.shards import ShardSet

TOLD = 1000  # faults that are printed


def main(arguments: list[str] | None = None) -> None:
    """Write or index shards and say what became of the source."""
    args = parse(arguments, __doc__)
    if args.kind == "index":
        index(args)
    elif args.kind == "made-up":
        make_up(args)
    else:
        write(args)


def write(args: argparse.Namespace) -> None:
    """Write the shards of one source and say what became of it."""
    mapping = Mapping(
        style=args.style or "",
        columns=tuple(tuple(item.split("=", 1)) for item in args.map or ()),
        images=tuple(args.image or ()),
        without=tuple(args.without or ()),
        questions=args.questions,
        decode=not args.no_decode,
        unit=args.points_in or "",
        box_form=args.boxes or "",
    )
    items = origin(args, mapping)
    out = Path(args.out)
    plan = Plan(
        out, args.name or "shard", args.samples_per_shard or 1000, args.workers, args.max_bad_share
    )
    outcome = Outcome()
    try:
        with tqdm(unit=" rows", desc=f"shards in {out}") as bar:
            for count in convert(items, mapping, plan, outcome):
                bar.update(count)
    finally:
        tell(outcome.faults)
    shards = ShardSet(str(out))
    said = "; ".join(["", *summary(outcome, items.passed)])
    look = f"look at them: python tools/inspect_shards.py {out}"
    print(f"{len(shards)} samples in {len(shards.shards)} shards{said}; {look}")


def origin(
    args: argparse.Namespace, mapping: Mapping
) -> DataSet | Lines | Table | Fetched | Folder | Tars:
    """The origin of the samples."""
    if args.kind == "folder":
        return Folder(Path(args.source))
    if args.kind == "tars":
        return Tars(find_tars(args.source))
    rows = rows_of(args, mapping)
    return Fetched(rows, mapping, Path(args.store)) if args.store else rows


def rows_of(args: argparse.Namespace, mapping: Mapping) -> DataSet | Lines | Table:
    """The rows of a data set, of JSON lines or of a CSV file."""
    if args.kind == "dataset":
        root = args.root or (args.source if Path(args.source).is_dir() else "")
        return DataSet(
            args.source, mapping, args.subset, args.split or "train", args.streaming, root
        )
    root = args.root or str(Path(args.source).parent)
    if args.kind == "csv":
        return Table(args.source, root, mapping)
    return Lines(args.source, root)


def index(args: argparse.Namespace) -> None:
    """Write index, sidecar and `.nv-meta` for the tars of a folder."""
    folder = indexing.open_folder(Path(args.source))
    for _ in tqdm(
        indexing.index(folder, args.workers), total=len(folder.tars), unit=" tars", desc="index"
    ):
        pass
    tell(folder.damaged + folder.outcome.faults)
    indexing.finish(folder, args.max_bad_share)
    faults = folder.outcome.faults
    skipped = [f"{len(faults)} of them cannot be used and will be skipped"] if faults else []
    folder.outcome.faults = []
    said = "; ".join(["", *skipped, *summary(folder.outcome, folder.passed)])
    count = len(ShardSet(str(folder.path)))
    print(f"{count} samples in {len(folder.tars)} shards of {folder.path} are indexed{said}.")


def make_up(args: argparse.Namespace) -> None:
    """Write made-up shards of every data set that a family's recipes read, and their tokenizer."""
    folder = Path(args.source)
    pictures = 8 if args.pictures is None else args.pictures
    written = write_made_up(folder, pictures, args.seed or 0, args.family or "molmo")
    print(f"{sum(written.values())} made-up samples in {len(written)} folders of {folder}")


def tell(faults: list[str]) -> None:
    """Print what cannot be used."""
    for fault in faults[:TOLD]:
        print(f"skipped {fault}", file=sys.stderr)
    if len(faults) > TOLD:
        print(f"and {len(faults) - TOLD} more", file=sys.stderr)
