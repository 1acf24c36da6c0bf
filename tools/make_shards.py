"""Write shards from a Hugging Face data set, a folder, JSON lines or other tars; index tars that others wrote.

python tools/make_shards.py dataset NAME_OR_FOLDER OUT --style vqa2 --map question=query answer=label
python tools/make_shards.py folder PICTURES OUT --style long_caption
python tools/make_shards.py jsonl FILE.jsonl OUT --root PICTURES
python tools/make_shards.py tars 'OLD/*.tar' OUT --style long_caption
python tools/make_shards.py index FOLDER
"""

import argparse
import functools
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from molmo_ds import files
from molmo_ds.data import convert
from molmo_ds.data.shards import ShardSet
from molmo_ds.data.write import index_tar, write_meta

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".mp4")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.kind == "index":
        index(args.source, args.workers)
    else:
        write(args)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["dataset", "folder", "jsonl", "tars", "index"])
    parser.add_argument("source", help="name or folder of a data set, folder, file, or glob of tars")
    parser.add_argument("out", nargs="?", help="folder of the shards")
    parser.add_argument("--name", default="shard", help="shards are called NAME-000000.tar, ...")
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--style", default="", help="style of rows that have no annotations of their own")
    parser.add_argument("--map", nargs="*", default=[], help="field=column, for example question=query")
    parser.add_argument("--image", default="image", help="column of the picture or pictures")
    parser.add_argument("--root", default="", help="folder of the pictures that JSON lines name; default: the file's")
    parser.add_argument("--subset", default=None, help="configuration of a hub data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--streaming", action="store_true", help="do not download the data set first")
    args = parser.parse_args(argv)
    if args.kind != "index" and not args.out:
        parser.error("give the folder to write to")
    if any("=" not in item for item in args.map):
        parser.error("--map takes field=column")
    return args


def write(args: argparse.Namespace) -> None:
    """Write the shards of one source and say what became of it."""
    mapping = convert.Mapping(args.style, tuple(tuple(item.split("=", 1)) for item in args.map), args.image)
    if args.kind == "dataset":
        items, one = dataset_rows(args), functools.partial(convert.from_dataset, mapping=mapping)
    elif args.kind == "jsonl":
        root = args.root or str(Path(args.source).parent)
        items, one = lines(args.source), functools.partial(convert.from_line, mapping=mapping, root=root)
    elif args.kind == "folder":
        items, one = pictures(Path(args.source)), functools.partial(convert.from_file, mapping=mapping)
    else:
        tars = [Path(tar) for tar in files.find(args.source)]
        if not tars:
            raise ValueError(f"There are no tars at {args.source}.")
        items, one = convert.members(tars), functools.partial(convert.from_members, mapping=mapping)
    out = Path(args.out)
    with tqdm(unit=" samples", desc=f"shards in {out}") as bar:
        for count in convert.write_parallel(items, one, out, args.name, args.samples_per_shard, args.workers):
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
        if path.suffix.lower() in PICTURES:
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


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"make_shards: {error}")
