"""The options of `molmo-ds shards make`, and what can be wrong with them."""

import argparse
import re
import sys

from molmo_ds import files
from molmo_ds.cli.checked_options import Parser
from molmo_ds.data.convert.rows import FIELDS
from molmo_ds.data.convert.units import BOX_FORMS, SCALES
from molmo_ds.data.made_up.sets import SETS

ANY = ("dataset", "jsonl", "csv", "folder", "tars")
ROWS = ("dataset", "jsonl", "csv")
ONLY = {  # option -> kinds of sources for which it means something
    "root": ROWS,
    "store": ROWS,
    "subset": ("dataset",),
    "split": ("dataset",),
    "streaming": ("dataset",),
    "image": ROWS,
    "seed": ("made-up",),
    "pictures": ("made-up",),
    "family": ("made-up",),
}
IN_PLACE = ("index", "made-up")  # that write into the folder they are given
ONLY |= dict.fromkeys(
    (
        "style",
        "map",
        "without",
        "points_in",
        "boxes",
        "questions",
        "no_decode",
        "name",
        "samples_per_shard",
    ),
    ANY,
)


def parse(arguments: list[str] | None, about: str) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ["dataset", "folder", "jsonl", "csv", "tars", "index", "made-up"]
    parser.add_argument("kind", choices=kinds)
    parser.add_argument(
        "source",
        type=files.home,
        help="name or folder of a data set, folder, file, or glob of tars",
    )
    parser.add_argument("out", nargs="?", type=files.home, help="folder of the shards")
    parser.add_argument("--name", help="shards are called NAME-000000.tar, ... (default shard)")
    parser.add_argument("--samples-per-shard", type=int, help="default 1000")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.001,
        help="rows that cannot be used above it: exit 1",
    )
    parser.add_argument("--style", help="style of rows that have no annotations of their own")
    parser.add_argument(
        "--map", nargs="*", help="field=column: question=query; of csv points=x,y and boxes=a,b,c,d"
    )
    parser.add_argument(
        "--image", nargs="*", help="columns of the picture or pictures (default image or images)"
    )
    parser.add_argument("--without", nargs="*", help="columns to leave out, pictures among them")
    parser.add_argument(
        "--questions", action="store_true", help="keep samples without an answer, for evaluation"
    )
    parser.add_argument(
        "--no-decode", action="store_true", help="do not decode every picture to see if it is whole"
    )
    parser.add_argument(
        "--root", type=files.home, help="folder of the pictures that rows name; default: the file's"
    )
    parser.add_argument(
        "--store", type=files.home, help="folder that keeps pictures which rows name by address"
    )
    parser.add_argument(
        "--points-in",
        choices=tuple(SCALES),
        help="unit of points and boxes that have no point_scale",
    )
    parser.add_argument(
        "--boxes",
        choices=BOX_FORMS,
        help="form of boxes, of which the centres are learnt: corners, corner and size, centre and size",
    )
    parser.add_argument("--subset", help="configuration of a hub data set")
    parser.add_argument("--split", help="default train")
    parser.add_argument(
        "--streaming", action="store_true", help="do not download the data set first"
    )
    parser.add_argument("--pictures", type=int, help="of each made-up data set (default 8)")
    parser.add_argument("--seed", type=int, help="of what is made up (default 0)")
    parser.add_argument("--family", choices=tuple(SETS), help="that reads it (default molmo)")
    args = parser.parse_args(map_last(sys.argv[1:] if arguments is None else arguments))
    problem = problem_of(args)
    if problem:
        parser.error(problem)
    return args


def problem_of(args: argparse.Namespace) -> str:
    """A sentence about the first mistake in the options; empty if there is none."""
    if args.kind not in IN_PLACE and not args.out:
        return "give the folder to write to"
    if args.kind in IN_PLACE and args.out:
        return f"{args.kind} writes into the folder itself; give no other"
    if min(args.pictures or 1, 1 + (args.seed or 0)) < 1:
        return "--pictures must be at least 1 and --seed at least 0"
    for name, kinds in ONLY.items():
        if getattr(args, name) not in (None, False) and args.kind not in kinds:
            return f"--{name.replace('_', '-')} says nothing about {args.kind}; leave it out"
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
        (
            i
            for i in range(start + 2, len(words))
            if "=" not in words[i] or words[i].startswith("-")
        ),
        len(words),
    )
    return words[:start] + words[stop:] + words[start:stop]
