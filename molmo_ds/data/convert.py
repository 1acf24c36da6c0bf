"""Rows of other formats (data sets of the hub, folders, JSON lines, tars) to samples of ours, written in parallel."""

import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from molmo_ds.data.write import refuse_existing, unique, walk_tar, write_meta, write_shard

Sample = tuple[str, dict[str, bytes]]  # key, parts
_MAGIC = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"))
_PICTURES = ("jpg", "jpeg", "png", "webp", "mp4")
FIELDS = ("question", "answer", "answers", "text", "options", "answer_index", "points", "point_scale", "label")
FIELDS += ("messages", "weight", "unlabelled", "inline_points")


@dataclass(frozen=True)
class Mapping:
    """How a row without `annotations` becomes one annotation: its style, and field -> column (default: the same)."""

    style: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    image: str = "image"

    def annotation(self, key: str, row: dict[str, Any]) -> dict[str, Any]:
        """One annotation; ValueError when the row has none of the fields or there is no style."""
        taken = {column for _, column in self.columns}
        columns = {field: field for field in FIELDS if field not in taken} | dict(self.columns)
        found = {field: row[name] for field, name in columns.items() if row.get(name) is not None}
        if not found or not self.style:
            raise ValueError(
                f"Row '{key}' has no 'annotations'; give --style and say which columns to use, for example "
                f"--map question=query answer=label (the row has: {', '.join(row)})."
            )
        return {"style": self.style} | found


def sample(key: str, row: dict[str, Any], pictures: list[bytes], mapping: Mapping) -> Sample:
    """A row and its encoded pictures as one sample in the record format (docs/data_format.md)."""
    names = [extension(key, data) for data in pictures]
    if len(pictures) > 1:
        names = [f"{i}.{name}" for i, name in enumerate(names)]
    annotations = row.get("annotations")
    record: dict[str, Any] = {"images": names}
    record["annotations"] = [mapping.annotation(key, row)] if annotations is None else annotations
    record |= {name: row[name] for name in ("metadata", "num_frames") if row.get(name) is not None}
    data = json.dumps(record, ensure_ascii=False, default=_plain).encode()
    return key.replace(".", "_"), dict(zip(names, pictures)) | {"json": data}


def extension(key: str, data: bytes) -> str:
    """jpg, png, webp or mp4 by the first bytes; ValueError for anything else."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        return "mp4"
    raise ValueError(f"A picture of '{key}' is neither JPEG, PNG, WebP nor MP4 (it starts with {data[:8]!r}).")


def from_dataset(item: tuple[str, dict[str, Any]], mapping: Mapping) -> Sample:
    """A row of a Hugging Face data set whose pictures were not decoded; others than JPEG, PNG, WebP become PNG."""
    key, row = item
    values = row.get(mapping.image, row.get("images")) or []
    pictures = [_encoded(value) for value in (values if isinstance(values, list) else [values])]
    rest = {name: value for name, value in row.items() if name not in (mapping.image, "images")}
    return sample(key, rest, pictures, mapping)


def from_line(item: tuple[str, str], mapping: Mapping, root: str) -> Sample:
    """A line of JSON: `images` (or the image column) are paths below `root`; `key` is optional."""
    key, line = item
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"Line {key} is not JSON: {error}.") from None
    paths = row.get("images", row.get(mapping.image)) or []
    paths = paths if isinstance(paths, list) else [paths]
    return sample(str(row.pop("key", key)), row, [Path(root, path).read_bytes() for path in paths], mapping)


def from_file(item: tuple[str, str], mapping: Mapping) -> Sample:
    """A picture with `STEM.json` (a record, a list of annotations, named columns) or `STEM.txt` (a text) beside it."""
    key, path = item
    beside = Path(path)
    if beside.with_suffix(".json").is_file():
        row = json.loads(beside.with_suffix(".json").read_text())
        row = {"annotations": row} if isinstance(row, list) else row
    elif beside.with_suffix(".txt").is_file():
        row = {"text": beside.with_suffix(".txt").read_text().strip()}
    else:
        raise ValueError(f"{path} has neither a .json nor a .txt file beside it; see docs/data_format.md.")
    return sample(key, row, [beside.read_bytes()], mapping)


def from_members(item: Sample, mapping: Mapping) -> Sample:
    """A sample of another tar: pictures in the order of their names, annotations from .json, else a text from .txt."""
    key, parts = item
    row = json.loads(parts["json"]) if "json" in parts else {}
    if "txt" in parts and "annotations" not in row:
        row |= {"text": parts["txt"].decode().strip()}
    named = row.pop("images", None)
    names = named if named else sorted(name for name in parts if name.split(".")[-1] in _PICTURES)
    return sample(key, row, [parts[name] for name in names], mapping)


def members(tars: Iterable[Path]) -> Iterator[Sample]:
    """The samples of tars as (key, {part: bytes}); ValueError where one is damaged."""
    for path in tars:
        for key, parts, _, _ in walk_tar(path):
            yield key.strip("./"), {name: data for name, _, data in parts}


def write_parallel(
    items: Iterable[Any], convert: Callable[[Any], Sample], out_dir: Path, name: str, per_shard: int, workers: int
) -> Iterator[int]:
    """Convert items and write `per_shard` of them per tar in worker processes; yields how many samples have landed.

    The shards do not depend on `workers`. Raises what `write.write_shards` raises; then the folder has no `.nv-meta`
    and is not taken for a data set.
    """
    refuse_existing(out_dir, name)
    items, seen, pending, number = iter(items), set(), deque(), 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while True:
            batch = list(islice(items, per_shard))
            if batch:
                path = out_dir / f"{name}-{number:06d}.tar"
                pending.append(pool.submit(_write_one, path, batch, convert))
                number += 1
            while pending and (not batch or len(pending) > 2 * workers):  # bounds what waits in memory
                yield _landed(pending.popleft(), seen)
            if not batch:
                break
    if not number:
        raise ValueError(f"There is no sample to write into {out_dir}.")
    write_meta(out_dir)


def _write_one(path: Path, batch: list[Any], convert: Callable[[Any], Sample]) -> list[str]:
    keys: set[str] = set()
    write_shard(path, unique(map(convert, batch), keys), len(batch) + 1, 1 << 62)
    return sorted(keys)


def _landed(future: "Future[list[str]]", seen: set[str]) -> int:
    keys = future.result()
    for _ in unique(((key, {}) for key in keys), seen):
        pass
    return len(keys)


def _encoded(value: Any) -> bytes:
    data = value.get("bytes") or Path(value["path"]).read_bytes() if isinstance(value, dict) else value
    if any(data.startswith(magic) for magic, _ in _MAGIC):
        return data
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
