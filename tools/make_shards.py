"""Write shards from a Hugging Face data set, a folder, JSON lines or other tars; index tars that others wrote.

python tools/make_shards.py dataset NAME_OR_FOLDER OUT --style vqa2 --map question=query answer=label
python tools/make_shards.py folder PICTURES OUT --style long_caption
python tools/make_shards.py jsonl FILE.jsonl OUT --root PICTURES
python tools/make_shards.py tars 'OLD/*.tar' OUT --style long_caption
python tools/make_shards.py index FOLDER
"""

import argparse
import functools
import glob
import io
import json
import sys
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from molmo_ds import files
from molmo_ds.data.shards import ShardSet
from molmo_ds.data.write import BLOCK, ShardIndex, refuse_existing, unique, write_meta, write_shard

Sample = tuple[str, dict[str, bytes]]  # key, parts
MAGIC = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"))
PICTURES = ("jpg", "jpeg", "png", "webp", "mp4")
FIELDS = ("question", "answer", "answers", "text", "options", "answer_index", "points", "point_scale", "label")
FIELDS += ("messages", "weight", "unlabelled", "inline_points")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.kind == "index":
        index(args.source, args.workers)
    else:
        write(args)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["dataset", "folder", "jsonl", "tars", "index"])
    parser.add_argument("source", type=files.home, help="name or folder of a data set, folder, file, or glob of tars")
    parser.add_argument("out", nargs="?", type=files.home, help="folder of the shards")
    parser.add_argument("--name", default="shard", help="shards are called NAME-000000.tar, ...")
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--style", default="", help="style of rows that have no annotations of their own")
    parser.add_argument("--map", nargs="*", default=[], help="field=column, for example question=query")
    parser.add_argument("--image", default="image", help="column of the picture or pictures")
    parser.add_argument(
        "--root", type=files.home, default="", help="folder of the pictures named in JSON lines; default: theirs"
    )
    parser.add_argument("--subset", default=None, help="configuration of a hub data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--streaming", action="store_true", help="do not download the data set first")
    args = parser.parse_args(map_last(sys.argv[1:] if argv is None else argv))
    if args.kind != "index" and not args.out:
        parser.error("give the folder to write to")
    if any("=" not in item for item in args.map):
        parser.error("--map takes field=column")
    return args


def map_last(words: list[str]) -> list[str]:
    """The same words with --map and its field=column at the end, where they take no other word for theirs."""
    start = words.index("--map") if "--map" in words else len(words)
    stop = next(
        (i for i in range(start + 1, len(words)) if "=" not in words[i] or words[i].startswith("-")), len(words)
    )
    return words[:start] + words[stop:] + words[start:stop]


def write(args: argparse.Namespace) -> None:
    """Write the shards of one source and say what became of it."""
    mapping = Mapping(args.style, tuple(tuple(item.split("=", 1)) for item in args.map), args.image)
    if args.kind == "dataset":
        items, one = dataset_rows(args), functools.partial(from_dataset, mapping=mapping)
    elif args.kind == "jsonl":
        root = args.root or str(Path(args.source).parent)
        items, one = lines(args.source), functools.partial(from_line, mapping=mapping, root=root)
    elif args.kind == "folder":
        items, one = pictures(Path(args.source)), functools.partial(from_file, mapping=mapping)
    else:
        tars = [Path(tar) for tar in files.find(args.source)]
        if not tars:
            raise ValueError(f"There are no tars at {args.source}.")
        items, one = members(tars), functools.partial(from_members, mapping=mapping)
    out = Path(args.out)
    with tqdm(unit=" samples", desc=f"shards in {out}") as bar:
        for count in write_parallel(items, one, out, args.name, args.samples_per_shard, args.workers):
            bar.update(count)
    shards = ShardSet(str(out))
    print(f"{len(shards)} samples in {len(shards.shards)} shards; look at them: python tools/inspect_shards.py {out}")


def dataset_rows(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with undecoded pictures and the names of their classes; keys count the rows."""
    import datasets

    if (Path(args.source) / "dataset_info.json").is_file() or (Path(args.source) / "dataset_dict.json").is_file():
        data = datasets.load_from_disk(args.source)
        data = data[args.split] if isinstance(data, datasets.DatasetDict) else data
    else:
        if Path(args.source).is_dir() and glob.has_magic(args.source):
            raise ValueError(f"datasets takes the brackets or stars in {args.source} for a pattern; rename the folder.")
        data = datasets.load_dataset(args.source, args.subset, split=args.split, streaming=args.streaming)
    for name, feature in (data.features or {}).items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, datasets.Image):
            undecoded = datasets.Image(decode=False)
            data = data.cast_column(name, undecoded if inner is feature else datasets.List(undecoded))
    classes = {name: f for name, f in (data.features or {}).items() if isinstance(f, datasets.ClassLabel)}
    for i, row in enumerate(data):
        yield f"{i:09d}", row | {name: feature.int2str(row[name]) for name, feature in classes.items()}


def lines(path: str) -> Iterator[tuple[str, str]]:
    """(number, line) of a file, empty lines left out."""
    with open(path) as file:
        for i, line in enumerate(file):
            if line.strip():
                yield f"{i:09d}", line


def pictures(folder: Path) -> Iterator[tuple[str, str]]:
    """(key, path) of the pictures below a folder, sorted."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower().removeprefix(".") in PICTURES:
            yield str(path.relative_to(folder).with_suffix("")).replace(".", "_"), str(path)


def index(source: str, workers: int) -> None:
    """Write index, sidecar and `.nv-meta` for the tars of a folder."""
    folder = Path(source)
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise ValueError(f"There are no tars in {folder}.")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for tar, found in zip(tars, tqdm(pool.map(index_tar, tars), total=len(tars), unit=" tars", desc="index")):
            found.save(tar)
    write_meta(folder)
    print(f"{len(ShardSet(str(folder)))} samples in {len(tars)} shards of {folder} are indexed.")


def index_tar(path: str | Path) -> ShardIndex:
    """Gather the index of a local tar that somebody else wrote; ValueError as `walk_tar`, and for a duplicate key."""
    index, seen = ShardIndex(), set()
    for key, parts, start, end in walk_tar(path):
        if key in seen:
            raise ValueError(f"Key '{key}' comes twice in {path}; sort or rename its members.")
        seen.add(key)
        index.add(key, parts, start, end)
    if not seen:
        raise ValueError(f"{path} holds no sample.")
    return index


def walk_tar(path: str | Path) -> Iterator[tuple[str, list[tuple[str, int, bytes]], int, int]]:
    """The samples of a tar: key, parts (name, offset of the bytes, bytes), and where the sample starts and ends.

    As webdataset does, neighbouring members whose paths agree up to the first dot are one sample. Raises ValueError for
    a truncated tar and a corrupt header; unlike tarfile and webdataset, never takes a damaged header for the end.
    """
    path = Path(path)
    key, start, parts = None, 0, []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                stem, _, part = name.partition(".")
                if not member.isreg() or not part:
                    continue
                if key not in (None, folder + slash + stem):
                    yield key, parts, start, member.offset
                    key = None
                if key is None:
                    key, start, parts = folder + slash + stem, member.offset, []
                parts.append((part.lower(), member.offset_data, tar.extractfile(member).read()))
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is truncated or not an uncompressed tar ({error}); make it again.") from None
    check_end(path, end)
    if key is not None:
        yield key, parts, start, end


def check_end(path: Path, end: int) -> None:
    """ValueError unless the tar has its end mark at `end`, where the last member stops."""
    block = files.read_range(str(path), end, end + BLOCK) if path.stat().st_size >= end + BLOCK else b""
    if not block:
        raise ValueError(f"{path} is truncated: it stops at byte {end} without an end mark; make or copy it again.")
    if any(block):
        raise ValueError(f"{path} has a corrupt header at byte {end}; make or copy it again.")


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
    data = json.dumps(record, ensure_ascii=False, default=plain).encode()
    return key.replace(".", "_"), dict(zip(names, pictures)) | {"json": data}


def extension(key: str, data: bytes) -> str:
    """jpg, png, webp or mp4 by the first bytes; ValueError for anything else."""
    for magic, name in MAGIC:
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        return "mp4"
    raise ValueError(f"A picture of '{key}' is neither JPEG, PNG, WebP nor MP4 (it starts with {data[:8]!r}).")


def from_dataset(item: tuple[str, dict[str, Any]], mapping: Mapping) -> Sample:
    """A row of a Hugging Face data set whose pictures were not decoded; others than JPEG, PNG, WebP become PNG."""
    key, row = item
    values = row.get(mapping.image, row.get("images")) or []
    pictures = [encoded(value) for value in (values if isinstance(values, list) else [values])]
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
    names = named if named else sorted(name for name in parts if name.split(".")[-1] in PICTURES)
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
                pending.append(pool.submit(write_one, path, batch, convert))
                number += 1
            while pending and (not batch or len(pending) > 2 * workers):  # bounds what waits in memory
                yield landed(pending.popleft(), seen)
            if not batch:
                break
    if not number:
        raise ValueError(f"There is no sample to write into {out_dir}.")
    write_meta(out_dir)


def write_one(path: Path, batch: list[Any], convert: Callable[[Any], Sample]) -> list[str]:
    keys: set[str] = set()
    write_shard(path, unique(map(convert, batch), keys), len(batch) + 1, 1 << 62)
    return sorted(keys)


def landed(future: "Future[list[str]]", seen: set[str]) -> int:
    keys = future.result()
    for _ in unique(((key, {}) for key in keys), seen):
        pass
    return len(keys)


def encoded(value: Any) -> bytes:
    data = value.get("bytes") or Path(value["path"]).read_bytes() if isinstance(value, dict) else value
    if any(data.startswith(magic) for magic, _ in MAGIC):
        return data
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"make_shards: {error}")
