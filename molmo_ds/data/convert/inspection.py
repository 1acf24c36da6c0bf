"""A check of every member of every shard of a data set, and what its samples hold."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from webdataset.tariterators import group_by_keys, tar_file_iterator

from molmo_ds import files
from molmo_ds.data.decode import BadSample, load_image
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.annotation import alternatives
from molmo_ds.data.sample.record import VIDEOS, read_json
from molmo_ds.data.sample.review import Review
from molmo_ds.data.video import frames_at

Sizes = tuple[str, dict[str, int]]  # key of a sample, length of each part


@dataclass
class Report:
    """Findings in one data set so far; `faults` are sentences."""

    samples: int = 0
    pictures: int = 0
    bytes: int = 0
    characters: int = 0
    without_picture: int = 0
    styles: dict[str, int] = field(default_factory=dict)
    review: Review = field(default_factory=Review)
    faults: list[str] = field(default_factory=list)


def inspect(shards: ShardSet, decode: bool = True) -> Iterator[Report]:
    """Compare every member of every sample with the index; yields the same, growing report after each sample.

    Told, not raised: damaged headers, bytes that do not match their hash, shards that cannot be read, keys that come
    twice, annotations that training cannot use and, with `decode`, pictures that cannot be decoded.
    """
    report = Report()
    keys = set()
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
    for annotation in [one for value in record["annotations"] for one in alternatives(value)]:
        style = str(annotation.get("style"))
        report.styles[style] = report.styles.get(style, 0) + 1
    report.without_picture += not record["images"]
    report.pictures += len(record["images"])
    for name, data in zip(record["images"], record["pixels"]):
        if decode and name.split(".")[-1] in VIDEOS:
            frames_at(data, [0.0])
        elif decode:
            load_image(data)
    report.review.add(record)


def sound(header: bytes, name: str, length: int) -> bool:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return info.size == length and (len(name) >= 100 or info.name.lower() == name.lower())


def differences(shards: ShardSet) -> Iterator[str]:
    """Differences between the index and what other readers of webdataset tars see, a sentence a local shard."""
    first = 0
    for shard in shards.shards:
        stop = first + shard.samples
        if not files.is_remote(shard.path):
            try:
                yield from first_difference(shard.path, index_samples(shards, first, stop))
            except ValueError as error:  # a part that comes twice
                yield f"{shard.path}: webdataset cannot read it ({error.args[0]})"
        first = stop


def first_difference(path: str, ours: Iterator[Sizes]) -> Iterator[str]:
    """A sentence about the first sample that webdataset reads otherwise, if there is one."""
    for mine, theirs in zip_longest(ours, webdataset_samples(path)):
        if mine != theirs:
            seen = [
                f"'{one[0]}' with {', '.join(one[1])}" if one else "no more sample"
                for one in (theirs, mine)
            ]
            yield f"{path}: webdataset reads {seen[0]} where the index has {seen[1]}"
            return


def index_samples(shards: ShardSet, first: int, stop: int) -> Iterator[Sizes]:
    """Key and length of each part of some samples, as the index has them."""
    for number in range(first, stop):
        row = shards.locate(number)[1]
        yield row["key"], dict(zip(row["part_names"], row["part_lengths"]))


def webdataset_samples(path: str) -> Iterator[Sizes]:
    """Key and length of each part of the samples of a local tar, as webdataset groups them."""
    with open(path, "rb") as file:
        members = (member | {"__url__": path} for member in tar_file_iterator(file))
        for sample in group_by_keys(members):
            parts = {name: len(data) for name, data in sample.items() if not name.startswith("__")}
            yield sample["__key__"], parts
