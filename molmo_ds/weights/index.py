"""The index of a checkpoint: one row per piece of a parameter, in one parquet file of all ranks.

A part is a small Arrow file with one rank's rows, of which rank 0 merges the index. Rows are sorted by parameter and
place, so the columns, which are arithmetic series under every strategy, take next to no room, and a reader holds arrays
instead of objects.
"""

import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from molmo_ds.files import Place
from molmo_ds.weights.blocks import Blocks, Damaged
from molmo_ds.weights.checksums import Facts, count
from molmo_ds.weights.pieces import Stored, end_of
from molmo_ds.weights.tensor_files import DTYPES

OPEN = 256  # files at once
VERIFIED = 1 << 20  # elements of a piece that are verified at once
INDEX, LANES = "index.parquet", "lanes.parquet"
# of a row: `parameter` and `kind` are numbers in the lists of the file's metadata, the rest as in `Stored`
COLUMNS = ("parameter", "kind", "start", "end", "size", "width", "distance", "phase", "offset",
           "block")  # fmt: skip
Row = tuple[str, tuple[int, ...], Stored]  # name and whole shape of the parameter, its piece
Kind = tuple[tuple[str, str], ...]  # (key, type) of each tensor of a piece


def rank_file(rank: int) -> str:
    """The name of a rank's file of tensors."""
    return f"rank-{rank:05d}.safetensors"


def part(
    pieces: list[Row],
    scalars: dict[str, float],
    lanes: dict[int, dict],
    facts: dict[str, int],
) -> bytes:
    """A rank's part: its pieces, and what else it knows."""
    shapes = {name: list(shape) for name, shape, _ in pieces}
    numbers = {name: number for number, name in enumerate(shapes)}
    kinds: dict[Kind, int] = {}
    rows = []
    for name, _, stored in pieces:
        kind = kinds.setdefault(tuple(zip(stored.keys, stored.dtypes)), len(kinds))
        end = end_of(stored.start, stored.size, stored.stride)
        stride = stored.stride or (0, 0, 0)
        rows.append(
            (
                numbers[name],
                kind,
                stored.start,
                end,
                stored.size,
                *stride,
                stored.offset,
                stored.block,
            )
        )
    table = np.array(rows, np.int64).reshape(-1, len(COLUMNS))
    made = pa.table({name: table[:, number] for number, name in enumerate(COLUMNS)})
    metadata = {
        "parameters": json.dumps([shapes, list(kinds)]),
        "rank": json.dumps({"scalars": scalars, "facts": facts}),
        "lanes": json.dumps(lanes),
    }
    return to_bytes(made.replace_schema_metadata(metadata))


def to_bytes(table: pa.Table) -> bytes:
    """An Arrow file, not compressed: rank 0 reads one of each rank."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    return sink.getvalue().to_pybytes()


@dataclass
class Merged:
    """What the parts of all ranks make: two files' bytes, and the facts of each rank's file."""

    index: bytes
    lanes: bytes
    facts: dict[str, dict]


def merge(parts: Iterable[bytes]) -> Merged:
    """One index of the parts of rank 0, 1, ...; its time and memory are linear in the number of pieces."""
    shapes: dict[str, list[int]] = {}
    kinds: dict[Kind, int] = {}
    numbers: dict[str, int] = {}
    known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}  # ranks mostly have the same parameters
    tables, files, scalars, lanes, facts = [], [], {}, {}, {}
    for rank, data in enumerate(parts):
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        metadata = table.schema.metadata
        said = metadata[b"parameters"]
        if said not in known:
            own_shapes, own_kinds = json.loads(said)
            shapes |= own_shapes
            names = [numbers.setdefault(name, len(numbers)) for name in own_shapes]
            sorts = [kinds.setdefault(tuple(map(tuple, kind)), len(kinds)) for kind in own_kinds]
            known[said] = np.array(names, np.int64), np.array(sorts, np.int64)
        names, sorts = known[said]
        columns = [numbers_of(column) for column in table.columns]
        tables.append([names[columns[0]], sorts[columns[1]], *columns[2:]])
        files.append(np.full(len(table), rank))
        rest = json.loads(metadata[b"rank"])
        scalars |= rest["scalars"]
        facts[rank_file(rank)] = rest["facts"]
        lanes |= json.loads(metadata[b"lanes"])
    columns = {name: np.concatenate(column) for name, column in zip(COLUMNS, zip(*tables))}
    columns["file"] = np.concatenate(files)
    span = int(columns["end"].max(initial=0)) + 1
    order = np.argsort(columns["parameter"] * span + columns["start"])
    made = pa.table({name: column[order] for name, column in columns.items()})
    metadata = {"parameters": json.dumps([shapes, list(kinds)]), "scalars": json.dumps(scalars)}
    states = {
        "lane": pa.array(map(int, lanes), pa.int64()),
        "state": pa.array(map(json.dumps, lanes.values()), pa.string()),
    }
    return Merged(
        _parquet(made.replace_schema_metadata(metadata)), _parquet(pa.table(states)), facts
    )


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    numbers = [name for name in table.column_names if pa.types.is_integer(table[name].type)]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=False,
        column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
        write_statistics=False,
    )
    return sink.getvalue().to_pybytes()


def _table(data: bytes) -> pa.Table:
    # not pq.read_table, which imports pyarrow.dataset
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def numbers_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of int64 without gaps; `to_numpy` would import pandas, which takes 30 MB."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of an empty table
        return np.empty(0, np.int64)
    if array.null_count or array.type != pa.int64():
        raise ValueError("a column of numbers has gaps")
    begin = array.offset
    return np.frombuffer(array.buffers()[1], np.int64)[begin : begin + len(array)]


def read_lanes(data: bytes) -> dict[int, dict]:
    """The state of every lane, of the bytes of a checkpoint's lanes.parquet."""
    table = _table(data)
    return dict(zip(table["lane"].to_pylist(), map(json.loads, table["state"].to_pylist())))


@dataclass
class Index:
    """The pieces of a checkpoint as arrays, sorted by parameter and place; see `Pieces`."""

    folder: Place
    facts: dict[str, Facts]
    shapes: dict[str, tuple[int, ...]]
    kinds: list[Kind]
    scalars: dict[str, float]
    columns: dict[str, np.ndarray]
    begins: dict[str, tuple[int, int]]  # the rows of each parameter
    opened: dict[str, Blocks] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Place, facts: dict[str, Facts], data: bytes) -> "Index":
        """Of the bytes of index.parquet; ValueError if they contradict themselves."""
        table = _table(data)
        shapes, kinds = json.loads(table.schema.metadata[b"parameters"])
        columns = {name: numbers_of(table[name]) for name in (*COLUMNS, "file")}
        _check(columns, shapes, kinds, facts)
        numbers = columns["parameter"]
        ends = np.searchsorted(numbers, np.arange(len(shapes) + 1))
        begins = {name: (int(ends[i]), int(ends[i + 1])) for i, name in enumerate(shapes)}
        return cls(
            folder,
            facts,
            {name: tuple(shape) for name, shape in shapes.items()},
            [tuple(map(tuple, kind)) for kind in kinds],
            json.loads(table.schema.metadata[b"scalars"]),
            columns,
            begins,
        )

    @property
    def keys(self) -> set[str]:
        """The keys of all pieces."""
        return {key for kind in self.kinds for key, _ in kind}

    def of_parameter(self, name: str, first: int, last: int) -> list[Stored]:
        """The pieces that may hold elements of [first, last), by their places."""
        begin, end = self.begins[name]
        rows = slice(begin, end)
        there = (self.columns["start"][rows] < last) & (self.columns["end"][rows] > first)
        return [self._stored(begin + int(row)) for row in np.flatnonzero(there)]

    def verify(self) -> None:
        """Read every number of every piece; Damaged where they are not as they were written."""
        for row in range(len(self.columns["start"])):
            stored = self._stored(row)
            for key in stored.keys:
                for first in range(0, stored.size, VERIFIED):
                    self.read(stored, "", key, first, min(first + VERIFIED, stored.size))

    def _stored(self, row: int) -> Stored:
        values = {name: int(self.columns[name][row]) for name in (*COLUMNS, "file")}
        kind = self.kinds[values["kind"]]
        stride = (values["width"], values["distance"], values["phase"]) if values["width"] else ()
        return Stored(
            rank_file(values["file"]),
            values["start"],
            values["size"],
            tuple(key for key, _ in kind),
            stride,
            tuple(dtype for _, dtype in kind),
            values["offset"],
            values["block"],
        )

    def read(self, stored: Stored, name: str, key: str, first: int, last: int) -> Tensor:
        """Elements [first, last) of one piece, flat, as they were written; else Damaged."""
        offset, block = stored.offset, stored.block
        for other, kind in zip(stored.keys, stored.dtypes):
            dtype = DTYPES[kind]
            size = stored.size * dtype.itemsize
            if other == key:
                break
            offset += size
            block += count(size)
        if stored.file not in self.opened:
            if len(self.opened) % OPEN == OPEN - 1:  # a process may not have more files open
                for old in self.opened.values():
                    old.ranges.close()
            self.opened[stored.file] = Blocks(self.folder / stored.file, self.facts[stored.file])
        data = self.opened[stored.file].read(
            offset, size, block, first * dtype.itemsize, last * dtype.itemsize
        )
        return torch.from_numpy(data).view(dtype)


def _check(
    columns: dict[str, np.ndarray],
    shapes: dict[str, list[int]],
    kinds: list[Kind],
    facts: dict[str, Facts],
) -> None:
    """ValueError for rows that no save writes."""
    sizes = np.array([math.prod(shape) for shape in shapes.values()], np.int64)
    types = {dtype for kind in kinds for _, dtype in kind}
    ranks = sum(name.startswith("rank-") for name in facts)
    files = [facts[rank_file(rank)].bytes for rank in range(ranks)]
    right = all((column >= 0).all() for column in columns.values())
    right = right and all(DTYPES[dtype].is_floating_point for dtype in types)
    right = right and (columns["end"] <= sizes[columns["parameter"]]).all()
    right = right and (columns["size"] <= columns["end"] - columns["start"]).all()
    right = right and (columns["offset"] <= np.array(files)[columns["file"]]).all()
    right = right and (columns["kind"] < len(kinds)).all()
    width, distance, phase = (columns[name] for name in ("width", "distance", "phase"))
    strided = width > 0
    right = right and ((phase < width) & (width <= distance))[strided].all()
    if not right:
        raise ValueError("rows contradict each other")


def checked(folder: Place, name: str, facts: Facts) -> bytes:
    """A small file of a checkpoint; Damaged unless it is as it was written."""
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        raise Damaged(folder, f"{name} is missing") from None
    if len(data) != facts.bytes:
        raise Damaged(folder, f"{name} has {len(data)} bytes instead of {facts.bytes}")
    if zlib.crc32(data) != facts.crc32:
        raise Damaged(folder, f"the checksum of {name} is wrong")
    return data
