"""Writer of webdataset tar shards with their index: reproducible bytes, temporary names, nothing overwritten silently.

A shard `name-000000.tar` comes with `name-000000.tar.idx` (Energon's: N + 1 little-endian uint64 sample offsets) and
`name-000000.tar.parquet` (the sidecar, one row per sample: SIDECAR below). The folder's `.nv-meta` holds Energon's
`.info.json`, `split.yaml` and `dataset.yaml`, and `molmo_ds.json` (bytes of each tar, hash of each sidecar). See
docs/reference/data-format.md.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from molmo_ds import files
from molmo_ds.data.decode import count_pictures, read_size, upright_size
from molmo_ds.data.sample.conversation import is_plain
from molmo_ds.data.sample.record import VIDEOS, Record, parse_record, text_length
from molmo_ds.data.video import video_size

BLOCK = 512  # tar's unit
SIDECAR = pa.schema(
    [
        ("key", pa.string()),
        # "json", "jpg", "0.jpg", ... as they follow in the tar
        ("part_names", pa.list_(pa.string())),
        ("part_offsets", pa.list_(pa.int64())),  # of the part's bytes in the tar
        ("part_lengths", pa.list_(pa.int64())),
        # of the record's images in order, as stored (a video's as shown); 0 = unreadable
        ("widths", pa.list_(pa.int32())),
        ("heights", pa.list_(pa.int32())),
        ("orientations", pa.list_(pa.int8())),  # EXIF, 1 = upright
        ("durations", pa.list_(pa.float64())),  # seconds of a video, 0 = a picture, or not known
        ("sha256", pa.binary(32)),  # of the parts' bytes, one after another
        ("text_length", pa.int32()),  # characters of the annotations
        ("annotations", pa.int32()),
    ]
)
ENERGON = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}  # its dataset.yaml
_KEY = re.compile(r"[^./][^.]*\Z")


@dataclass
class ShardIndex:
    """The content of the sidecar and the .idx of one tar, while it is being gathered."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    # where each sample's first header starts, and the end
    offsets: list[int] = field(default_factory=lambda: [0])

    def add(self, key: str, parts: list[tuple[str, int, bytes]], start: int, end: int) -> Record:
        """One sample: parts are (name, offset of the bytes, bytes); returns its record with its pictures' sizes.

        Raises ValueError where the record is not in our format.
        """
        contents = {name: data for name, _, data in parts}
        if len(contents) < len(parts):
            raise ValueError(
                f"Sample '{key}' holds a part twice: {', '.join(name for name, _, _ in parts)}."
            )
        record = parse_record(key, contents.get("json"), contents)
        probes = [probe(contents[name], name) for name in record["images"]]
        self.rows.append(
            {
                "key": key,
                "part_names": [name for name, _, _ in parts],
                "part_offsets": [offset for _, offset, _ in parts],
                "part_lengths": [len(data) for _, _, data in parts],
                "widths": [p.width for p in probes],
                "heights": [p.height for p in probes],
                "orientations": [p.orientation for p in probes],
                "durations": [p.duration for p in probes],
                "sha256": digest(data for _, _, data in parts),
                "text_length": text_length(record["annotations"]),
                "annotations": len(record["annotations"]),
            }
        )
        self.offsets[-1] = start
        self.offsets.append(end)
        return record | {
            "sizes": [upright_size(p.width, p.height, p.orientation) for p in probes],
            "durations": [p.duration for p in probes],
        }

    def save(self, tar: Path) -> None:
        """Write `<tar>.idx` and `<tar>.parquet`."""
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self.rows, SIDECAR), buffer, compression="zstd")
        files.write_atomic(f"{tar}.parquet", buffer.getvalue())
        files.write_atomic(f"{tar}.idx", np.asarray(self.offsets, "<u8").tobytes())


def write_shards(
    records: Iterable[tuple[str, dict[str, bytes]]],
    out_dir: str | Path,
    name: str = "shard",
    samples_per_shard: int = 1000,
    bytes_per_shard: int = 1 << 30,
) -> list[Path]:
    """Write (key, {part name: bytes}) samples as `out_dir/name-%06d.tar` with index and `.nv-meta`; returns the tars.

    Raises ValueError for a key with a dot, a key seen before, a sample that is not in the record format, and a folder
    that already holds shards of that name.
    """
    folder = Path(out_dir)
    seen = set()
    tars = []
    refuse_existing(folder, name)
    samples = unique(records, seen)
    for first in samples:
        path = folder / f"{name}-{len(tars):06d}.tar"
        write_shard(path, chain([first], samples), samples_per_shard, bytes_per_shard)
        tars.append(path)
    if not tars:
        raise ValueError(f"There is no sample to write into {folder}.")
    write_meta(folder)
    return tars


def refuse_existing(folder: Path, name: str) -> None:
    """Make the folder; ValueError when it holds shards of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(path.name.startswith(f"{name}-") and ".tar" in path.name for path in folder.iterdir()):
        raise ValueError(
            f"{folder} already holds shards named {name}-*.tar; remove them or choose another folder."
        )


def unique(
    records: Iterable[tuple[str, dict[str, bytes]]], seen: set[str]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The records, with a ValueError at a key that `seen` holds."""
    for key, parts in records:
        if key in seen:
            raise ValueError(f"Key '{key}' comes twice; give every sample a key of its own.")
        seen.add(key)
        yield key, parts


def check_key(key: str) -> None:
    """ValueError where a key cannot be a member's name before its first dot, or is no printable text."""
    if not _KEY.match(key) or not is_plain(key):
        raise ValueError(
            f"'{key if is_plain(key) else ascii(key)}' cannot be a key: webdataset splits names at dots; use"
            " letters, digits, - _ /."
        )


def write_shard(
    path: str | Path,
    samples: Iterator[tuple[str, dict[str, bytes]]],
    max_samples: int,
    max_bytes: int,
) -> int:
    """Take samples until one of the limits is reached and write them as one indexed tar; returns how many."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    index = ShardIndex()
    position = 0
    try:
        with open(temporary, "wb") as file:
            for key, contents in samples:
                check_key(key)
                start = position
                parts = []
                for part in sorted(contents):
                    head = header(f"{key}.{part}", len(contents[part]))
                    data = contents[part]
                    file.write(head + data + bytes(-len(data) % BLOCK))
                    parts.append((part, position + len(head), data))
                    position += len(head) + len(data) + -len(data) % BLOCK
                index.add(key, parts, start, position)
                if len(index.rows) >= max_samples or position >= max_bytes:
                    break
            file.write(bytes(2 * BLOCK))
            file.flush()
            os.fsync(file.fileno())
        index.save(path)
        files.publish(temporary, path)  # last: a tar under its final name has its index
    finally:
        temporary.unlink(missing_ok=True)
    return len(index.rows)


def header(name: str, length: int) -> bytes:
    """A tar header that depends on nothing but name and length."""
    info = tarfile.TarInfo(name)
    info.size = length
    info.mode = 0o644
    try:
        return info.tobuf(tarfile.USTAR_FORMAT)
    except (ValueError, UnicodeError) as error:
        raise ValueError(
            f"'{name}' cannot be a name in a tar ({error}); use a shorter key."
        ) from None


def tars_of(folder: str | Path) -> list[Path]:
    """The tars of a folder by name; those whose names begin with a dot are another program's."""
    return sorted(
        tar for tar in Path(folder).glob("*.tar") if not tar.name.startswith(".") and tar.is_file()
    )


def write_meta(folder: str | Path) -> None:
    """Write `.nv-meta` for all indexed tars of a folder; Megatron-Energon reads it too.

    Where somebody has written Energon's `dataset.yaml`, or a `split.yaml` with parts other than `train`, it is kept.
    """
    folder = Path(folder)
    shards = {}
    for tar in tars_of(folder):
        sidecar = Path(f"{tar}.parquet")
        if not sidecar.is_file():
            raise ValueError(f"{tar} has no index; run: python tools/make_shards.py index {folder}")
        count = Path(f"{tar}.idx").stat().st_size // 8 - 1
        data = sidecar.read_bytes()
        hashed = hashlib.sha256(data).hexdigest()
        shards[tar.name] = {"samples": count, "bytes": tar.stat().st_size, "sidecar_sha256": hashed}
        counts = annotation_counts(pq.ParquetFile(io.BytesIO(data)).read(["annotations"]))
        if counts is not None:
            shards[tar.name]["annotations"] = int(counts.sum())
    meta = folder / ".nv-meta"
    meta.mkdir(exist_ok=True)
    counts = {name: shard["samples"] for name, shard in shards.items()}
    contents = {".info.json": {"energon_version": "7.4.1", "shard_counts": counts}}
    if not (meta / "dataset.yaml").is_file():
        contents["dataset.yaml"] = ENERGON
    if not has_parts(meta / "split.yaml"):
        parts = {"train": list(shards), "val": [], "test": []}
        contents["split.yaml"] = {"split_parts": parts, "exclude": []}
    contents["molmo_ds.json"] = {"version": 1, "shards": shards}  # last: it makes the folder ours
    for name, content in contents.items():
        files.write_atomic(meta / name, json.dumps(content, indent=1, allow_nan=False).encode())


def annotation_counts(sidecar: pa.Table) -> np.ndarray | None:
    """Annotations of each sample, 1 where there is none; None of a sidecar of before 2026-11-30."""
    if "annotations" not in sidecar.column_names:
        return None
    return np.maximum(sidecar.column("annotations").to_numpy(), 1)


def has_parts(split: Path) -> bool:
    """Whether an Energon split.yaml puts shards, or single samples, elsewhere than into `train`."""
    if not split.is_file():
        return False
    known = yaml.safe_load(split.read_text()) or {}
    others = [names for part, names in known.get("split_parts", {}).items() if part != "train"]
    return any(others) or bool(known.get("exclude"))


@dataclass(frozen=True)
class Probe:
    """What the index says of a picture or a video."""

    width: int
    height: int
    orientation: int = 1  # EXIF
    duration: float = 0.0  # seconds; 0 = a picture


def probe(data: bytes, name: str) -> Probe:
    """The size of a picture or a video by its part's name; all 0 when it is none that can be read.

    A GIF of several frames is a video. Where the package av is missing, videos are 0 too.
    """
    suffix = name.rsplit(".", 1)[-1]
    try:
        if suffix in VIDEOS or (suffix == "gif" and count_pictures(data) > 1):
            found = video_size(data)
            return Probe(found.width, found.height, 1, found.duration)
        return Probe(*read_size(data))
    except ValueError:
        return Probe(0, 0)


def digest(parts: Iterable[bytes]) -> bytes:
    """sha256 of the parts, one after another."""
    total = hashlib.sha256()
    for data in parts:
        total.update(data)
    return total.digest()
