"""Folders of weights and checkpoints of any size, of which everything is there but the tensors."""

import json
import math
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from molmo_ds import settings
from molmo_ds.config import RunConfig
from molmo_ds.engine.save import writer
from molmo_ds.testing.scale.ranks import Network
from molmo_ds.weights import blocks, checkpoint, checksums, index
from molmo_ds.weights.tensor_files import INDEX
from molmo_ds.weights.tensor_writer import SHARD


def part(network: Network, stage: int, rank: int, size: int) -> bytes:
    """What rank `rank` of `size` tells rank 0 in a save, made by the functions that a save calls."""
    rows, tensors, scalars = [], {}, {}
    for piece in network.pieces(stage, rank, size):
        scalars |= piece.scalars
        if piece.owned:
            rows.append(writer.row_of(piece, rank))
            tensors |= writer.named(piece)
    layout = blocks.Layout.of(tensors)
    placed = [writer.placed(row, layout) for row in rows]
    return index.part(placed, scalars, lanes_of(rank), layout.facts(b""))


def parts(network: Network, size: int) -> list[bytes]:
    """The parts of all ranks under ZeRO-3; where all pieces are as long as rank 0's, made of those, which is faster."""
    first = part(network, 3, 0, size)
    counts = [math.prod(shape) for shape in network.shapes.values()]
    whole = min(count // -(-count // size) for count in counts)  # ranks whose pieces are not cut
    moved = [first, *(moved_to(rank, first) for rank in range(1, whole))]
    return moved + [part(network, 3, rank, size) for rank in range(whole, size)]


def moved_to(rank: int, first: bytes) -> bytes:
    """The part of another rank, whose pieces are as long as those of rank 0 and lie behind them."""
    table = pa.ipc.open_file(pa.py_buffer(first)).read_all()
    distance = pc.multiply(table["size"], rank)
    for name in ("start", "end"):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pc.add(table[name], distance))
    return index.to_bytes(
        table.replace_schema_metadata(
            {**table.schema.metadata, b"lanes": json.dumps(lanes_of(rank))}
        )
    )


def lanes_of(rank: int) -> dict[int, dict]:
    """The state of a rank's lanes: one, of the length that those of a packing pool of 16 have."""
    return {rank: {"draws": 12345, "pool": [[0, number] for number in range(16)]}}


def commit(folder: Path, network: Network, parts: list[bytes]) -> Path:
    """A checkpoint of these parts, as rank 0 commits it."""
    path = folder / "step-00000001"
    path.mkdir(parents=True)
    merged = index.merge(parts)
    settings.save(network.config, path / "config.yaml")
    small = {index.INDEX: merged.index, index.LANES: merged.lanes}
    for name, data in small.items():
        (path / name).write_bytes(data)
    noted = {name: checksums.facts_of(path / name) for name in (*small, "config.yaml")}
    manifest = {"format": checkpoint.FORMAT, "step": 1, "ranks": len(parts)}
    manifest |= {"optimizer": network.config.optim.name, "files": merged.facts | noted}
    (path / "manifest.json").write_text(json.dumps(manifest))
    for name, facts in merged.facts.items():
        (path / name).touch()
        os.truncate(path / name, facts["bytes"])
    return path


def weights(folder: Path, network: Network) -> Path:
    """A folder of fp32 weights in shards, which have their headers and sizes and take no room."""
    folder.mkdir(parents=True)
    settings.save(replace(RunConfig(), model=network.config.model), folder / "config.yaml")
    shards: list[dict] = [{}]
    end = 0
    for name, shape in network.shapes.items():
        size = 4 * math.prod(shape)
        if end and end + size > SHARD:
            shards.append({})
            end = 0
        shards[-1][name] = blocks.entry("F32", shape, end, size)
        end += size
    where = {}
    for number, entries in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        hollow_file(folder / name, entries)
        where |= dict.fromkeys(entries, name)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    noted = {INDEX: checksums.facts_of(folder / INDEX)}
    sizes = {name: (folder / name).stat().st_size for name in set(where.values())}
    block = checksums.block_of(sum(sizes.values()))
    tables = {}
    for name, size in sizes.items():
        noted[name] = {"bytes": size, "crc32": 0}
        table = np.zeros(checksums.count(size, block), np.uint32)
        tables[name] = checksums.Sums(block, table)
    checksums.write_blocks(folder, tables)
    (folder / checksums.NAME).write_text(json.dumps({"files": noted}))
    return folder


def hollow_file(path: Path, entries: dict[str, dict]) -> None:
    """A safetensors file with this header, whose tensors are a hole in it."""
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    ends = [entry["data_offsets"][1] for entry in entries.values()]
    os.truncate(path, 8 + len(header) + max(ends))
