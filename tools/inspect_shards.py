"""Counts, sizes and sample records of a data set, and a check of every member of every shard.

python tools/inspect_shards.py FOLDER_OR_URL [--samples 3] [--no-decode]; exit code 1 when something is wrong.
"""

import argparse
import json
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from molmo_ds.config import home
from molmo_ds.data.decode import BadSample, load_frames, load_image
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.record import VIDEOS, read_json
from molmo_ds.data.sample.review import Review

SHOWN = 50  # faults that are printed


@dataclass
class Report:
    """What was found in one data set so far; `faults` are sentences."""

    samples: int = 0
    pictures: int = 0
    bytes: int = 0
    characters: int = 0
    without_picture: int = 0
    styles: dict[str, int] = field(default_factory=dict)
    review: Review = field(default_factory=Review)
    faults: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=home, help="folder, URL or glob of indexed shards")
    parser.add_argument("--samples", type=int, default=3, help="records to print")
    parser.add_argument("--no-decode", action="store_true", help="do not decode the pictures")
    args = parser.parse_args(argv)
    shards = ShardSet(args.path)
    shards.check()
    *_, report = tqdm(inspect(shards, not args.no_decode), total=len(shards), unit=" samples", desc="check")
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
    for i in range(0, len(shards), max(1, len(shards) // max(1, args.samples)))[: args.samples]:
        print_record(shards, i)
    for fault in report.faults[:SHOWN]:
        print(f"  FAULT {fault}")
    if report.faults:
        sys.exit(f"{len(report.faults)} faults in {args.path} (the first {min(SHOWN, len(report.faults))} are above)")
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


def inspect(shards: ShardSet, decode: bool = True) -> Iterator[Report]:
    """Compare every member of every sample with the index; yields the same, growing report after each sample.

    Told, not raised: damaged headers, bytes that do not match their hash, shards that cannot be read, keys that come
    twice, annotations that training cannot use and, with `decode`, pictures that cannot be decoded.
    """
    report, keys = Report(), set()
    for index in range(len(shards)):
        shard, row = shards.locate(index)
        where = f"{shard.path}: sample '{row['key']}'"
        if row["key"] in keys:
            report.faults.append(f"{where} has a key that came before.")
        keys.add(row["key"])
        report.samples += 1
        report.characters += row["text_length"]
        report.bytes += sum(row["part_lengths"])
        try:
            for part, header in shards.headers(index).items():
                length = row["part_lengths"][row["part_names"].index(part)]
                if not sound(header, f"{row['key']}.{part}", length):
                    report.faults.append(f"{where} has a damaged header before its member {part}.")
            record = shards.read(index)
            look(record, report, decode)
            read_json(shards.parts(index)["json"], once=True)
        except BadSample as error:
            report.faults.append(f"{where}: {error}")
        except (ValueError, OSError) as error:
            known = str(error).startswith(shard.path)
            report.faults.append(str(error) if known else f"{where}: {error}.")
        yield report


def look(record: dict[str, Any], report: Report, decode: bool) -> None:
    """Count one sample; BadSample where training could not use it."""
    for annotation in record["annotations"]:
        style = str(annotation.get("style"))
        report.styles[style] = report.styles.get(style, 0) + 1
    report.without_picture += not record["images"]
    report.pictures += len(record["images"])
    for name, data in zip(record["images"], record["pixels"]):
        if decode and name.split(".")[-1] in VIDEOS:
            load_frames(data, 1)
        elif decode:
            load_image(data)
    report.review.add(record)


def sound(header: bytes, name: str, length: int) -> bool:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return info.size == length and (len(name) >= 100 or info.name.lower() == name.lower())


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"inspect_shards: {error}")
