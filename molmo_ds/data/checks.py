"""Checks that tools and tests share: is every member of a data set sound, are two streams identical."""

import dataclasses
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig
from molmo_ds.data.decode import BadSample, load_image
from molmo_ds.data.loader import Mixture, check_states, rank_lanes, sequences, steps
from molmo_ds.data.shards import VIDEOS, ShardSet

States = dict[int, dict[str, Any]]
GlobalBatch = list[Batch]  # the micro-batches of all ranks, in lane order


@dataclass
class Report:
    """What was found in one data set so far; `faults` are sentences."""

    samples: int = 0
    pictures: int = 0
    bytes: int = 0
    characters: int = 0
    styles: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def inspect(shards: ShardSet, decode: bool = True) -> Iterator[Report]:
    """Compare every member of every sample with the index; yields the same, growing report after each sample.

    Told, not raised: damaged headers, bytes that do not match their hash, shards that cannot be read, keys that come
    twice and, with `decode`, pictures that cannot be decoded.
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
                if not _sound(header, f"{row['key']}.{part}", length):
                    report.faults.append(f"{where} has a damaged header before its member {part}.")
            record = shards.read(index)
            for annotation in record["annotations"]:
                style = str(annotation.get("style"))
                report.styles[style] = report.styles.get(style, 0) + 1
            for name, data in zip(record["images"], record["pixels"]):
                report.pictures += 1
                if decode and name.split(".")[-1] not in VIDEOS:
                    load_image(data)
        except BadSample as error:
            report.faults.append(f"{where}: {error}")
        except (ValueError, OSError) as error:
            report.faults.append(str(error))
        yield report


def _sound(header: bytes, name: str, length: int) -> bool:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return info.size == length and (len(name) >= 100 or info.name.lower() == name.lower())


def replay(
    config: RunConfig,
    mixture: Mixture,
    ranks: int,
    workers: int,
    count: int,
    states: States | None = None,
    start_step: int = 0,
) -> tuple[list[GlobalBatch], States]:
    """`count` global batches as `ranks` ranks with `workers` workers each see them, and the states of all lanes after.

    The ranks run in this process, their workers are real ones that read ahead and are stopped in the middle of it.
    """
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=workers))
    streams = []
    for rank in range(ranks):
        lanes = rank_lanes(config, rank, ranks)
        check_states(mixture, lanes, states, start_step)
        streams.append(steps(config, sequences(config, mixture, lanes, states or {}), lanes))
    batches, after = [], dict(states or {})
    for _ in range(count):
        batches.append([])
        for stream in streams:
            micro_batches, lane_states = next(stream)
            batches[-1] += micro_batches
            after |= lane_states
    return batches, after


def identical(one: list[GlobalBatch], other: list[GlobalBatch]) -> bool:
    """Whether every tensor of two streams is equal to the bit."""
    return len(one) == len(other) and all(
        len(a) == len(b) and all(torch.equal(p, q) for x, y in zip(a, b) for p, q in zip(x.tensors(), y.tensors()))
        for a, b in zip(one, other)
    )
