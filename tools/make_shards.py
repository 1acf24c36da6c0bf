"""Write shards from a Hugging Face data set, a folder, JSON lines or other tars; index tars that others wrote.

python tools/make_shards.py dataset NAME_OR_FOLDER OUT --style vqa2 --map question=query answer=label
python tools/make_shards.py folder PICTURES OUT --style long_caption
python tools/make_shards.py jsonl FILE.jsonl OUT --root PICTURES
python tools/make_shards.py tars 'OLD/*.tar' OUT --style long_caption
python tools/make_shards.py index FOLDER

Rows that cannot be used are skipped, each with a sentence on stderr; above --max-bad-share nothing is written. The last
line says how many samples there are and what was skipped, passed over or changed.
"""

import argparse
import re
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from molmo_ds import files
from molmo_ds.data.bad_share import too_many
from molmo_ds.data.convert.conversion import Outcome, Plan, convert, summary
from molmo_ds.data.convert.foreign import WHAT
from molmo_ds.data.convert.origins import DataSet, Folder, Lines, Tars
from molmo_ds.data.convert.rows import FIELDS, Mapping
from molmo_ds.data.convert.tars import Indexed, examine_tar, index_tar, walk_tar
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import tars_of, write_meta

__all__ = ["index_tar", "main", "walk_tar"]
TOLD = 1000  # faults that are printed
ONLY = {"root": ("jsonl", "dataset"), "subset": ("dataset",), "split": ("dataset",), "streaming": ("dataset",)}
ONLY |= dict.fromkeys(("style", "map", "without", "questions", "no_decode"), ("dataset", "jsonl", "folder", "tars"))
ONLY |= {"image": ("dataset", "jsonl"), "name": ONLY["style"], "samples_per_shard": ONLY["style"]}


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.kind == "index":
        index(args.source, args.workers, args.max_bad_share)
    else:
        write(args)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["dataset", "folder", "jsonl", "tars", "index"])
    parser.add_argument("source", type=files.home, help="name or folder of a data set, folder, file, or glob of tars")
    parser.add_argument("out", nargs="?", type=files.home, help="folder of the shards")
    parser.add_argument("--name", help="shards are called NAME-000000.tar, ... (default shard)")
    parser.add_argument("--samples-per-shard", type=int, help="default 1000")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--max-bad-share", type=float, default=0.001, help="rows that cannot be used above it: exit 1")
    parser.add_argument("--style", help="style of rows that have no annotations of their own")
    parser.add_argument("--map", nargs="*", help="field=column, for example question=query")
    parser.add_argument("--image", nargs="*", help="columns of the picture or pictures (default image or images)")
    parser.add_argument("--without", nargs="*", help="columns to leave out, pictures among them")
    parser.add_argument("--questions", action="store_true", help="keep samples without an answer, for evaluation")
    parser.add_argument(
        "--no-decode", action="store_true", help="do not decode every picture once to see if it is whole"
    )
    parser.add_argument("--root", type=files.home, help="folder of the pictures that rows name; default: the file's")
    parser.add_argument("--subset", help="configuration of a hub data set")
    parser.add_argument("--split", help="default train")
    parser.add_argument("--streaming", action="store_true", help="do not download the data set first")
    args = parser.parse_args(map_last(sys.argv[1:] if argv is None else argv))
    if args.kind != "index" and not args.out:
        parser.error("give the folder to write to")
    if args.kind == "index" and args.out:
        parser.error("index writes into the folder itself; give no other")
    for name, kinds in ONLY.items():
        if getattr(args, name) not in (None, False) and args.kind not in kinds:
            parser.error(f"--{name.replace('_', '-')} says nothing about {args.kind}; leave it out")
    problem = problem_of(args)
    if problem:
        parser.error(problem)
    return args


def problem_of(args: argparse.Namespace) -> str:
    """What is wrong with the options, in a sentence; empty if nothing is."""
    if args.workers < 1 or (args.samples_per_shard is not None and args.samples_per_shard < 1):
        return "--workers and --samples-per-shard must be at least 1"
    if not 0 <= args.max_bad_share <= 1:
        return f"--max-bad-share is {args.max_bad_share}; it must lie between 0 and 1"
    if args.name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", args.name):
        return f"--name is '{args.name}'; use letters, digits, - and _"
    fields = []
    for item in args.map or ():
        name, sign, column = item.partition("=")
        if not sign or not column:
            return f"--map takes field=column, not '{item}'"
        if name not in FIELDS:
            return f"--map knows no field '{name}'; it is one of {', '.join(FIELDS)}"
        fields.append(name)
    twice = [name for name in fields if fields.count(name) > 1]
    return f"--map fills the field '{twice[0]}' twice" if twice else ""


def map_last(words: list[str]) -> list[str]:
    """The same words with --map and its field=column at the end, where they take no other word for theirs."""
    start = words.index("--map") if "--map" in words else len(words)
    stop = next(
        (i for i in range(start + 2, len(words)) if "=" not in words[i] or words[i].startswith("-")), len(words)
    )
    return words[:start] + words[stop:] + words[start:stop]


def write(args: argparse.Namespace) -> None:
    """Write the shards of one source and say what became of it."""
    mapping = Mapping(
        style=args.style or "",
        columns=tuple(tuple(item.split("=", 1)) for item in args.map or ()),
        images=tuple(args.image or ()),
        without=tuple(args.without or ()),
        questions=args.questions,
        decode=not args.no_decode,
    )
    items = origin(args, mapping)
    out = Path(args.out)
    plan = Plan(out, args.name or "shard", args.samples_per_shard or 1000, args.workers, args.max_bad_share)
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


def origin(args: argparse.Namespace, mapping: Mapping) -> DataSet | Folder | Lines | Tars:
    """Where the samples come from."""
    if args.kind == "dataset":
        root = args.root or (args.source if Path(args.source).is_dir() else "")
        return DataSet(args.source, mapping, args.subset, args.split or "train", args.streaming, root)
    if args.kind == "jsonl":
        return Lines(args.source, args.root or str(Path(args.source).parent))
    if args.kind == "folder":
        return Folder(Path(args.source))
    tars = [Path(tar) for tar in files.find(args.source)]
    if not tars:
        raise ValueError(f"There are no tars at {args.source}.")
    return Tars(tars)


def index(source: str, workers: int, max_bad_share: float) -> None:
    """Write index, sidecar and `.nv-meta` for the tars of a folder."""
    folder = Path(source)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    tars = tars_of(folder)
    passed = Counter({WHAT: sum(1 for path in folder.glob(".*.tar"))})
    passed["folders named like tars"] = sum(1 for path in folder.glob("*.tar") if path.is_dir())
    if not tars:
        raise ValueError(f"There are no tars in {folder}.")
    outcome = Outcome()
    damaged = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for tar, found in zip(tars, tqdm(pool.map(examined, tars), total=len(tars), unit=" tars", desc="index")):
            if isinstance(found, str):
                damaged.append(found)
                continue
            found.index.save(tar)
            outcome.samples += len(found.index.rows) - len(found.faults)
            outcome.faults += found.faults
            outcome.notes.review.merge(found.review)
            passed += found.passed
    tell(damaged + outcome.faults)
    if damaged:
        raise ValueError(f"{len(damaged)} of {len(tars)} tars cannot be indexed. The first: {damaged[0]}")
    if too_many(len(outcome.faults), outcome.seen, max_bad_share):
        raise ValueError(
            f"{len(outcome.faults)} of {outcome.seen} samples cannot be used, more than --max-bad-share {max_bad_share}"
            f" (of 10,000 samples at least) allows. The first: {outcome.faults[0]}"
        )
    write_meta(folder)
    skipped = [f"{len(outcome.faults)} of them cannot be used and will be skipped"] if outcome.faults else []
    outcome.faults = []
    said = "; ".join(["", *skipped, *summary(outcome, passed)])
    print(f"{len(ShardSet(str(folder)))} samples in {len(tars)} shards of {folder} are indexed{said}.")


def examined(tar: Path) -> Indexed | str:
    """What became of a tar, or why it cannot be indexed."""
    try:
        return examine_tar(tar)
    except ValueError as error:
        return str(error)


def tell(faults: list[str]) -> None:
    """Print what cannot be used."""
    for fault in faults[:TOLD]:
        print(f"skipped {fault}", file=sys.stderr)
    if len(faults) > TOLD:
        print(f"and {len(faults) - TOLD} more", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"make_shards: {error}")
