"""Counts, sizes and sample records of a data set, and a check of every member of every shard.

FOLDER_OR_URL [--samples 3] [--no-decode]; exit code 1 when something is wrong.
"""

import argparse
import json
import sys

from tqdm import tqdm

from molmo_ds.cli.checked_options import Parser
from molmo_ds.config import home
from molmo_ds.data.convert.inspection import differences, inspect
from molmo_ds.data.decode import BadSample
from molmo_ds.data.read.shards import ShardSet

SHOWN = 50  # faults that are printed


def main(arguments: list[str] | None = None) -> None:
    """Check a data set and print what it holds; exit code 1 where something is wrong."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=home, help="folder, URL or glob of indexed shards")
    parser.add_argument("--samples", type=int, default=3, help="records to print")
    parser.add_argument("--no-decode", action="store_true", help="do not decode the pictures")
    args = parser.parse_args(arguments)
    shards = ShardSet(args.path)
    shards.check()
    *_, report = tqdm(
        inspect(shards, not args.no_decode), total=len(shards), unit=" samples", desc="check"
    )
    print(f"{args.path}: {len(shards.shards)} shards, index {shards.fingerprint}")
    print(f"  samples     {report.samples:>12,}")
    print(f"  pictures    {report.pictures:>12,}")
    print(f"  megabytes   {report.bytes / 1e6:>12,.1f}")
    print(f"  characters  {report.characters:>12,}   of annotations")
    for style, count in sorted(report.styles.items(), key=lambda item: -item[1]):
        print(f"  style {style:<24} {count:>10,}")
    for sentence in report.review.sentences():
        print(f"  {sentence}")
    if report.without_picture:
        print(f"  {report.without_picture} samples without a picture")
    step = max(1, len(shards) // max(1, args.samples))
    for i in range(0, len(shards), step)[: args.samples]:
        print_record(shards, i)
    for fault in report.faults[:SHOWN]:
        print(f"  FAULT {fault}")
    if report.faults:
        sys.exit(
            f"{len(report.faults)} faults in {args.path} (the first {min(SHOWN, len(report.faults))} are above)"
        )
    for sentence in differences(shards):
        print(f"  {sentence}")
    print("every member is sound")


def print_record(shards: ShardSet, index: int) -> None:
    """One record, shortened to a few lines."""
    try:
        record = shards.record(index)
    except (BadSample, ValueError) as error:
        print(f"  sample {index}: {error}")
        return
    sizes = ", ".join(f"{width}x{height}" for width, height in record.pop("sizes"))
    text = json.dumps(record["annotations"], ensure_ascii=False)
    text = text[:400] + "..." if len(text) > 400 else text
    print(f"  sample {index} '{record['__key__']}' {sizes or 'no picture'}: {text}")
