"""Rows of a public data set to samples for `write_shards`; what gives none is counted and told."""

import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from PIL import Image

from molmo_ds.data.decode import BadSample, load_image, read_size, upright_size
from molmo_ds.data.read.writer import probe
from molmo_ds.data.sample.review import Review
from molmo_ds.data.sources.fetching.store import Request, Store
from molmo_ds.data.sources.source import Cut, Item, LeftOut, Picture, Row, Source
from molmo_ds.data.sources.videos.cut import cut, merge
from molmo_ds.data.video import film_kind, video_size

MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}
TOLD = 50  # rows and annotations of a kind that are printed when they are dropped


def records(
    source: Source,
    batches: Iterable[tuple[int, list[Row]]],
    split: str,
    how: Cut,
    read: Callable[[Picture], bytes | None],
    dropped: Counter,
    changed: Counter,
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples for `write_shards`, in training cut by `how`; counts what gave none, and what is not as published."""
    for number, rows in batches:
        items = adapted(source, rows, split, dropped)
        if split == "train" and items:
            pictures = [merge(items)] if source.group else items
            items = [record for picture in pictures for record in cut(picture, how, dropped)]
        for k, item in enumerate(items):
            sample = encode(item, read, dropped)
            if isinstance(sample, str):
                dropped[sample] += 1
            else:
                changed.update(changes(item))
                yield f"{source.name}-{number:08d}" + (f"-{k}" if len(items) > 1 else ""), sample


def changes(item: Item) -> dict[str, int]:
    """What an item shows or says otherwise than published."""
    return {
        "conversations that ask how many and are told not to point": sum(
            bool(one.get("no_pointing")) for one in item.annotations
        ),
        "records of a part that the set's publishers keep for validation": int(
            item.metadata.get("publisher_split") == "validation"
        ),
        "pictures drawn over": sum(one.redraw is not None for one in item.pictures),
    }


def reader(store: Store | None, folder: Path | None) -> Callable[[Picture], bytes | None]:
    """The source of a picture's bytes: the row itself, the store, or a file below `folder`."""

    def read(picture: Picture) -> bytes | None:
        if picture.url:
            return store.read(Request(picture.url, picture.sha256))
        if picture.data:
            return picture.data
        path = (folder if folder and folder.is_dir() else Path()) / picture.path
        return path.read_bytes() if path.is_file() else None

    return read


def adapted(source: Source, rows: list[Row], split: str, dropped: Counter) -> list[Item]:
    """The items of rows; a row whose columns hold what the adapter does not expect is counted and told."""
    items: list[Item] = []
    for row in rows:
        try:
            found = source.adapt(row, split)
            items += found
            dropped.update(["no usable annotation"] if not found else [])
        except LeftOut as reason:
            dropped[str(reason)] += 1
        except KeyError as error:
            raise ValueError(
                f"the rows have no column {error}; they have {', '.join(row)}."
            ) from None
        except (TypeError, ValueError, AttributeError, IndexError, SyntaxError) as error:
            tell(
                "row that cannot be read",
                f"{type(error).__name__}: {error} in {str(row)[:200]}",
                dropped,
            )
    return items


def tell(what: str, why: str, dropped: Counter) -> None:
    """Count what is dropped, and print why of the first ones."""
    dropped[what] += 1
    if dropped[what] <= TOLD:
        print(f"dropped a {what}: {why}", file=sys.stderr)


def encode(
    item: Item, read: Callable[[Picture], bytes | None], dropped: Counter
) -> dict[str, bytes] | str:
    """The parts of a sample, or why there is none; annotations that no training can use are dropped."""
    parts = {}
    for n, picture in enumerate(item.pictures):
        data = read(picture)
        if data is None:
            return "picture not reachable" if picture.url else "picture file missing"
        try:
            kind, data = part(data, picture)
        except BadSample:
            return "picture cannot be read"
        parts[kind if len(item.pictures) == 1 else f"{n}.{kind}"] = data
    record = {"images": list(parts), "annotations": [], "metadata": item.metadata} | item.about
    probes = [probe(data, name) for name, data in parts.items()]
    sizes = [upright_size(one.width, one.height, one.orientation) for one in probes]
    known = {"sizes": sizes, "durations": [one.duration for one in probes]}
    for annotation in item.annotations:
        try:
            Review().add(record | {"annotations": [annotation]} | known)
            record["annotations"].append(annotation)
        except BadSample as error:
            tell("annotation that cannot be used", str(error), dropped)
    if not record["annotations"]:
        return "no usable annotation"
    try:
        return {**parts, "json": json.dumps(record, ensure_ascii=False, allow_nan=False).encode()}
    except ValueError as error:  # NaN, or half a character
        return f"metadata that JSON cannot hold ({error})"


def part(data: bytes, picture: Picture) -> tuple[str, bytes]:
    """(jpg | png | webp | mp4 | webm, bytes): as they came where shards may hold them so, else as PNG.

    Raises BadSample.
    """
    film = film_kind(data)
    if film is not None:
        video_size(data)
        return film, data
    kind = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)
    if kind and picture.redraw is None:
        read_size(data)
        return kind, data
    image = Image.fromarray(load_image(data))
    buffer = io.BytesIO()
    (picture.redraw(image) if picture.redraw else image).save(buffer, "PNG")
    return "png", buffer.getvalue()
