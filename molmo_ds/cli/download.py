"""Download public data sets and write them as indexed shards.

    pixmo_cap chart_qa --out data --workers 64
    vqa2 --from /data/vqa2 --split validation --out data
    --list

First the pictures that a data set names by address go into OUT/pictures, then the shards are written from there into
OUT/NAME-SPLIT. Kill it at any point and give the same command again. docs/datasets.md lists the names.
"""

import argparse
import sys
from pathlib import Path

from molmo_ds.cli.checked_options import Parser
from molmo_ds.data import sources
from molmo_ds.data.sources.fetching.download import Options, download, table
from molmo_ds.data.sources.fetching.fetch import Limits
from molmo_ds.data.sources.fixed_answers import MODEL, NAME, of_model
from molmo_ds.files import local


def main(arguments: list[str] | None = None) -> int:
    """Download the data sets; 1, and a sentence on the standard error, if one failed."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets; see --list")
    parser.add_argument("--list", action="store_true", help="print the table of docs/datasets.md")
    parser.add_argument("--out", type=local, default=Path("data"))
    parser.add_argument(
        "--from",
        dest="folder",
        type=local,
        help="local file, zip or folder; may hold a folder per NAME",
    )
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--hold-out",
        type=int,
        default=0,
        help="records of a set without validation that become one",
    )
    parser.add_argument("--limit", type=int, help="rows, for a trial")
    parser.add_argument(
        "--max-annotations", type=int, help="of one record; more become several records"
    )
    parser.add_argument(
        "--halve",
        action="store_true",
        help="two records of each picture, as the published mixture counts PixMo-Docs and PixMo-Points",
    )
    parser.add_argument(
        "--max-points", type=int, help="of one annotation; those with more are dropped (0: none is)"
    )
    parser.add_argument(
        "--evaluation-pictures",
        action="store_true",
        help="keep the pictures of pixmo_points_eval in PixMo-Points",
    )
    parser.add_argument(
        "--model",
        default=MODEL,
        help=f"the preset or name that {NAME} answers with (default {MODEL})",
    )
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    parser.add_argument(
        "--workers", type=int, default=Limits.workers, help="requests under way at once"
    )
    parser.add_argument("--per-host", type=int, default=Limits.per_host)
    parser.add_argument("--attempts", type=int, default=Limits.attempts)
    parser.add_argument("--timeout", type=float, default=Limits.timeout)
    parser.add_argument(
        "--retry-permanent", action="store_true", help="ask again for what was gone for good"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="write shards that are there already once more"
    )
    args = parser.parse_intermixed_args(arguments)
    if args.list:
        print(table())
        return 0
    if not args.names:
        parser.error("give the NAME of a data set, or --list")
    if args.max_annotations is not None and args.max_annotations < 1:
        parser.error("--max-annotations must be at least 1; leave it out for no limit")
    if args.max_points is not None and args.max_points < 0:
        parser.error("--max-points must be at least 1, or 0 for no limit")
    limits = Limits(
        workers=args.workers, per_host=args.per_host, attempts=args.attempts, timeout=args.timeout
    )
    try:
        chosen = [of_model(sources.get(name), args.model) for name in args.names]
    except ValueError as error:
        parser.error(str(error))
    options = Options(
        out=args.out,
        folder=args.folder,
        split=args.split,
        hold_out=args.hold_out,
        limit=args.limit,
        cut=cut_of(args),
        evaluation_pictures=args.evaluation_pictures,
        samples_per_shard=args.samples_per_shard,
        retry_permanent=args.retry_permanent,
        overwrite=args.overwrite,
    )
    failed = 0
    for name, source in zip(args.names, chosen):
        if source.name != name:
            print(f"{name} is called {source.name}, as the reference calls it.", file=sys.stderr)
        if source.changed:
            print(source.changed, file=sys.stderr)
        try:
            download(source, options, limits)
        except ValueError as error:
            print(f"{source.name}: {error}", file=sys.stderr)
            failed = 1
    return failed


def cut_of(args: argparse.Namespace) -> dict[str, int | bool | None]:
    """What the options say of the way from pictures to records."""
    found: dict[str, int | bool | None] = {}
    if args.max_annotations is not None:
        found["annotations"] = args.max_annotations
    if args.halve:
        found["halve"] = True
    if args.max_points is not None:
        found["points"] = args.max_points or None
    return found
