"""Indexed reader of webdataset tars: one folder, URL or glob of shards as a sequence of records."""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from molmo_ds import files
from molmo_ds.config import home
from molmo_ds.data.decode import BadSample, upright_size
from molmo_ds.data.read.recent import Recent
from molmo_ds.data.read.shard_list import Bounds, Shard, ShardList
from molmo_ds.data.read.writer import BLOCK, annotation_counts, digest
from molmo_ds.data.sample.record import VIDEOS, annotations, parse_record

CHUNK_BYTES = 8 << 20  # one range request of remote storage
CHUNKS_PER_LANE = 8  # at least, so that lanes get nearly the same number of samples
OPEN_FILES = 16  # per data set and process: local tars
OPEN_ROWS = 80_000  # of sidecars, in a process over all its data sets; about 180 bytes each
PLACE = 1 << 30  # bytes between chunks in the sparse temporary file that keeps remote ones
# columns of a sidecar that say where a sample's parts lie
PLACES = ("key", "part_names", "part_offsets", "part_lengths", "sha256")
INDEX_HINT = "run: python tools/make_shards.py index"


class ShardSet:
    """All samples of a data set by number, 0 .. len - 1, over its shards in the order of their names.

    `path` is a folder, a URL of a folder (s3://, gs://, http(s)://), or a glob of local tars; each folder needs the
    index of data/read/writer.py. `lanes` (the global batch) bounds the size of the chunks. Raises ValueError for a
    folder without an index and, unless `listed` is false, for tars of a local folder that the index does not know;
    `check` compares the tars with it.
    """

    def __init__(self, path: str, lanes: int = 1, listed: bool = True):
        self.path = home(path)
        self._remote = files.is_remote(self.path)
        self.shards = ShardList(_find_shards(self.path))
        if listed:
            self._refuse_unknown()
        self.bounds = chunk_bounds(self.shards.starts, self.shards.bytes, lanes)
        self.fingerprint = _fingerprint(self.shards)
        self.serve(64)

    def serve(self, chunks: int, rows: int = OPEN_ROWS) -> None:
        """Forget what is kept, and keep up to `chunks` chunks and `rows` rows of sidecars (or one sidecar) from now on.

        Every worker process calls it first.
        """
        self._files = Recent(OPEN_FILES, os.close)
        self._sidecars = Recent(rows, weigh=len)
        self._chunks = Recent(chunks, self._release)
        self._free = list(range(chunks, -1, -1))
        # unlinked, so that it goes with the process; on disk, since a worker's memory should stay small
        self._spool = tempfile.TemporaryFile() if self._remote else None  # noqa: SIM115

    def __len__(self) -> int:
        return int(self.shards.starts[-1])

    def check(self, rank: int = 0, ranks: int = 1) -> None:
        """Compare the tars with the index; ValueError names the first that is missing, differs or is not known to it.

        Each of `ranks` processes asks the sizes of its share, so that each tar is asked once; rank 0 lists the folder.
        """
        if rank == 0:
            self._refuse_unknown()
        share = [self.shards[number] for number in range(rank, len(self.shards), ranks)]
        with ThreadPoolExecutor(16 if self._remote else 1) as pool:
            sizes = pool.map(_size_or_none, (shard.path for shard in share))
            for shard, size in zip(share, sizes):
                hint = f"make or copy it again, or if it was meant to change {INDEX_HINT} {os.path.dirname(shard.path)}"
                if size is None:
                    raise ValueError(f"{shard.path} is missing, but the index lists it; {hint}")
                if size != shard.bytes:
                    what = "is truncated" if size < shard.bytes else "changed under its index"
                    raise ValueError(
                        f"{shard.path} {what}: {size} bytes, {shard.bytes} in the index; {hint}"
                    )

    def record(self, index: int) -> dict[str, Any]:
        """The JSON of a sample, with "__key__" and "sizes" ((width, height) of its upright pictures), without pixels.

        Keys of annotations that are null are left out. Raises BadSample for an annotation that is no object and for a
        picture whose header could not be read when it was indexed, ValueError when the tar does not hold what its index
        says, OSError when it cannot be read.
        """
        shard, row = self.locate(index)
        return self._record(shard, row, self._parts(index, shard, row, ["json"])["json"])

    def read(self, index: int) -> dict[str, Any]:
        """Like `record`, plus "pixels": the encoded pictures in order. The bytes must match the index's hash."""
        shard, row = self.locate(index)
        parts = self._whole(index, shard, row)
        record = self._record(shard, row, parts["json"])
        record["pixels"] = [parts[name] for name in record["images"]]
        return record

    def pictures(self, index: int, names: Sequence[str]) -> list[bytes]:
        """The parts of those names; the bytes of all parts must match the index's hash, as for `read`."""
        shard, row = self.locate(index, PLACES)
        parts = self._whole(index, shard, row)
        return [parts[name] for name in names]

    def parts(self, index: int) -> dict[str, bytes]:
        """All members of a sample as they are in the tar."""
        shard, row = self.locate(index)
        return self._parts(index, shard, row, row["part_names"])

    def headers(self, index: int) -> dict[str, bytes]:
        """The tar header before each member of a sample."""
        shard, row = self.locate(index)
        places = zip(row["part_names"], row["part_offsets"])
        return {name: self._bytes(index, shard, offset - BLOCK, offset) for name, offset in places}

    def locate(
        self, index: int, columns: Sequence[str] | None = None
    ) -> tuple[Shard, dict[str, Any]]:
        """The shard of a sample and its row of the sidecar, all of write.SIDECAR's columns or some."""
        chunk = self._chunk(index)
        row = index - chunk.first
        names = columns or chunk.columns
        return chunk.shard, {name: chunk.columns[name][row].as_py() for name in names}

    def _refuse_unknown(self) -> None:
        if self._remote or not os.path.isdir(self.path):
            return
        with os.scandir(self.path) as entries:
            # one look at the folder, and none at each file
            tars = {
                entry.name
                for entry in entries
                if entry.name.endswith(".tar") and entry.name[0] != "." and entry.is_file()
            }
        known = {shard.path.rpartition("/")[2] for shard in self.shards}
        if unknown := sorted(tars - known):
            raise ValueError(
                f"{self.path} holds {unknown[0]}, which its index does not know; {INDEX_HINT} {self.path}"
            )

    def _chunk(self, index: int) -> "_Chunk":
        number = self.bounds.holding(index)
        return self._chunks.get(number, lambda: self._load(number))

    def _release(self, chunk: "_Chunk") -> None:
        if chunk.place >= 0:
            self._free.append(chunk.place)

    def _load(self, number: int) -> "_Chunk":
        first, stop = self.bounds[np.array([number, number + 1])].tolist()
        place = self.shards.holding(first)
        shard = self.shards[place]
        start = int(self.shards.starts[place])
        sidecar = self._sidecar(place)
        # so that the shard's whole table need not stay
        columns = _copied(sidecar.slice(first - start, stop - first))
        if self._spool is None:
            return _Chunk(shard, first, columns)
        offsets = columns["part_offsets"]
        begin = min(offsets[0].as_py()) - BLOCK
        last = zip(offsets[-1].as_py(), columns["part_lengths"][-1].as_py())
        end = max(offset + length for offset, length in last)
        data = files.read_range(shard.path, begin, end)
        chunk = _Chunk(shard, first, columns, begin, self._free.pop())
        os.pwrite(self._spool.fileno(), data, chunk.place * PLACE)
        return chunk

    def annotation_counts(self, place: int) -> np.ndarray | None:
        """See `writer.annotation_counts`, of the shard of that number."""
        return annotation_counts(self._sidecar(place))

    def _sidecar(self, place: int) -> pa.Table:
        return self._sidecars.get(place, lambda: _read_sidecar(self.shards[place]))

    def _record(self, shard: Shard, row: dict[str, Any], data: bytes) -> dict[str, Any]:
        try:
            record = parse_record(row["key"], data, dict.fromkeys(row["part_names"]))
        except BadSample:
            raise
        except ValueError as error:  # it could be parsed when it was indexed
            raise ValueError(
                f"{shard.path} changed under its index: {error} Then {INDEX_HINT}"
            ) from None
        record["__key__"] = row["key"]
        record["annotations"] = annotations(record)
        for name, width in zip(record["images"], row["widths"]):
            if not width and name.split(".")[-1] not in VIDEOS:
                raise BadSample(f"Its {name} is no picture that can be read.")
        turned = zip(row["widths"], row["heights"], row["orientations"])
        record["sizes"] = [upright_size(*size) for size in turned]
        # folders that were indexed before 2026-11-29 do not have it
        record["durations"] = row.get("durations") or [0.0] * len(record["sizes"])
        return record

    def _whole(self, index: int, shard: Shard, row: dict[str, Any]) -> dict[str, bytes]:
        """All parts of a sample, which match its hash."""
        parts = self._parts(index, shard, row, row["part_names"])
        if digest(parts.values()) != row["sha256"]:
            raise ValueError(
                f"{shard.path} changed under its index: sample '{row['key']}' does not match its hash; copy the shard "
                f"again, or if it was meant to change {INDEX_HINT} {os.path.dirname(shard.path)}"
            )
        return parts

    def _parts(
        self, index: int, shard: Shard, row: dict[str, Any], names: list[str]
    ) -> dict[str, bytes]:
        where = {
            n: (o, o + k)
            for n, o, k in zip(row["part_names"], row["part_offsets"], row["part_lengths"])
        }
        start = min(where[n][0] for n in names)
        stop = max(where[n][1] for n in names)
        # one read: the parts of a sample lie together
        data = memoryview(self._bytes(index, shard, start, stop))
        return {
            name: bytes(data[where[name][0] - start : where[name][1] - start]) for name in names
        }

    def _bytes(self, index: int, shard: Shard, start: int, stop: int) -> bytes:
        if self._spool is not None:
            chunk = self._chunk(index)
            return _pread(
                shard.path,
                self._spool.fileno(),
                start,
                stop,
                chunk.place * PLACE + start - chunk.begin,
            )
        file = self._files.get(shard.path, lambda: os.open(shard.path, os.O_RDONLY))
        return files.retry(lambda: _pread(shard.path, file, start, stop, start), shard.path)


@dataclass(frozen=True)
class _Chunk:
    """Neighbouring samples of one shard: their rows of the sidecar and, of a remote one, where their bytes are kept."""

    shard: Shard
    first: int
    columns: dict[str, pa.ChunkedArray]  # looking one up in a table costs as much as reading it
    begin: int = 0  # in the tar
    place: int = -1  # in the spool


def _find_shards(path: str) -> list[Shard]:
    if files.is_remote(path) or os.path.isdir(path):
        return _read_meta(path)
    tars = files.find(path)
    if not tars:
        raise ValueError(
            f"There are no shards at {path}; give a folder, a URL of a folder or a glob of tars."
        )
    odd = [file for file in tars if not file.endswith(".tar")]
    if odd:
        raise ValueError(f"{odd[0]} is no tar; give a folder, a URL of a folder or a glob of tars.")
    folders = sorted({os.path.dirname(tar) or "." for tar in tars})
    known = {
        os.path.realpath(shard.path): shard for folder in folders for shard in _read_meta(folder)
    }
    for tar in tars:
        if os.path.realpath(tar) not in known:
            raise ValueError(
                f"{tar} is not in the index of its folder; {INDEX_HINT} {os.path.dirname(tar) or '.'}"
            )
    return [known[os.path.realpath(tar)] for tar in tars]


def _read_meta(folder: str) -> list[Shard]:
    name = files.join(folder, ".nv-meta/molmo_ds.json")
    try:
        data = files.read(name)
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no index ({name} is missing); {INDEX_HINT} {folder}"
        ) from None
    try:
        content = json.loads(data)["shards"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{name} is damaged; {INDEX_HINT} {folder}") from None
    if not content:
        raise ValueError(f"{folder} holds no shards.")
    return [Shard(files.join(folder, tar), **content[tar]) for tar in sorted(content)]


def _read_sidecar(shard: Shard) -> pa.Table:
    name = shard.path + ".parquet"
    try:
        data = files.read(name)
    except FileNotFoundError:
        raise ValueError(f"{name} is missing; {INDEX_HINT} {os.path.dirname(shard.path)}") from None
    if hashlib.sha256(data).hexdigest() != shard.sidecar_sha256:
        raise ValueError(
            f"{name} is not the one that .nv-meta lists; {INDEX_HINT} {os.path.dirname(shard.path)}"
        )
    return pq.ParquetFile(io.BytesIO(data)).read(use_threads=False)  # this may be a forked worker


def _copied(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    sink = pa.BufferOutputStream()  # take() would load Arrow's compute kernels, 40 MB
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    copy = pa.ipc.open_stream(sink.getvalue()).read_all()
    return {name: copy.column(name) for name in copy.column_names}


def _fingerprint(shards: Iterable[Shard]) -> str:
    """Of [[name, samples, hash of the sidecar], ...] as JSON, written piece by piece."""
    hashed = hashlib.sha256(b"[")
    for number, shard in enumerate(shards):
        row = [shard.path.rpartition("/")[2], shard.samples, shard.sidecar_sha256]
        hashed.update(((", " if number else "") + json.dumps(row)).encode())
    hashed.update(b"]")
    return hashed.hexdigest()[:16]


def chunk_bounds(starts: np.ndarray, size: int, lanes: int) -> Bounds:
    """Chunks of about CHUNK_BYTES each, enough for the lanes."""
    samples = int(starts[-1])
    by_bytes = CHUNK_BYTES * samples // max(size, 1)
    by_lanes = samples // (CHUNKS_PER_LANE * lanes)
    length = max(1, min(by_bytes, by_lanes))
    return Bounds(starts, length)


def _pread(path: str, file: int, start: int, stop: int, offset: int) -> bytes:
    data = os.pread(file, stop - start, offset)
    files.check_length(path, data, start, stop)
    return data


def _size_or_none(path: str) -> int | None:
    try:
        return files.size(path)
    except FileNotFoundError:
        return None
