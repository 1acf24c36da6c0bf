"""Writes made-up shards of every data set that the recipes of a family read, and a tokenizer of what they say."""

import dataclasses
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from numpy.random import RandomState
from tqdm import tqdm

from molmo_ds.data import sources
from molmo_ds.data.made_up.film import make_film
from molmo_ds.data.made_up.rows import Shown, picture_of
from molmo_ds.data.made_up.scene import draw_scene
from molmo_ds.data.made_up.sets import SETS, Maker, Name, Sets
from molmo_ds.data.made_up.videos import Filmed
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sample.pointed import Scene
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sources.fetching.records import records
from molmo_ds.data.sources.fetching.rows import group
from molmo_ds.data.sources.source import Picture, Row, Source
from molmo_ds.data.tokens import train_tokenizer

MANY = 9  # things of a picture of high frequency
VOCABULARY = 1024  # words of the tokenizer, at most
MADE_UP = "made up"  # key of report.json


def write_made_up(out: Path, pictures: int, seed: int, family: str = "molmo") -> dict[str, int]:
    """Write OUT/NAME-SPLIT for every set of a family and OUT/tokenizer; the number of records of each folder.

    Each shows `pictures` pictures or videos, of which a global batch needs as many as it has sequences. The same seed
    gives the same bytes. Raises ValueError where a folder is there already.
    """
    sets = SETS[family]
    makers = {**sets.pictures, **sets.videos}
    taken = [out / f"{name}-{split}" for name, split in makers]
    there = next((folder for folder in [*taken, out / "tokenizer"] if folder.exists()), None)
    if there:
        raise ValueError(f"{there} is there already; remove it or name another folder.")
    written = {}
    for (name, split), make in tqdm(makers.items(), desc="made-up", unit="set"):
        shown = _shown((name, split), sets, pictures, seed)
        folder = out / f"{name}-{split}"
        written[folder.name] = _write(sources.get(name), split, shown, make, folder, seed)
    words = _texts(out, sets)
    train_tokenizer(words, VOCABULARY, out / "tokenizer", special=sets.special)
    return written


def _shown(name: Name, sets: Sets, count: int, seed: int) -> list[Shown] | list[Filmed]:
    """The pictures or videos of a set."""
    if name in sets.videos:
        return [Filmed(number, *make_film(seed, number)) for number in range(count)]
    rng = RandomState([seed, zlib.crc32("-".join(name).encode())])
    shown = [_show(name[0], number, rng) for number in range(count)]
    # of which sets of several pictures show two to four
    return [
        dataclasses.replace(one, others=tuple(shown[(i + k) % count] for k in range(1, 2 + i % 3)))
        for i, one in enumerate(shown)
    ]


def _show(name: str, number: int, rng: RandomState) -> Shown:
    scene = draw_scene(rng, MANY if "high_freq" in name else 5)
    return Shown(number, scene, picture_of(name, number, scene))


def _write(
    source: Source,
    split: str,
    shown: list[Shown] | list[Filmed],
    make: Maker,
    folder: Path,
    seed: int,
) -> int:
    files = {one.file: one.data for one in shown}

    def read(picture: Picture) -> bytes:
        return picture.data or files[Path(picture.url or picture.path).name]

    dropped: Counter = Counter()
    changed: Counter = Counter()
    batches = _batches(source, split, [make(one) for one in shown])
    samples = records(source, batches, split, source.cut, read, dropped, changed)
    write_shards(samples, folder, source.name)
    assert not dropped, f"{source.name}: {dropped}"
    count = len(ShardSet(str(folder)))
    note = {"source": source.name, MADE_UP: True, "seed": seed, "records": count}
    (folder / "report.json").write_text(json.dumps(note | {"changed": dict(+changed)}, indent=1))
    return count


def _batches(source: Source, split: str, rows: list[list[Row]]) -> Iterator[tuple[int, list[Row]]]:
    """Rows as `records` takes them: those of a picture, or of a part of a video, together where the set groups them."""
    together = [
        [shown[number] for number in numbers]
        for shown in rows
        for numbers in group(source, shown, split, range(len(shown))).values()
    ]
    yield from enumerate(together)


def _texts(out: Path, sets: Sets) -> Iterator[str]:
    """What the training records say under the prompts of all stages."""
    for folder in sorted(out.glob("*-train")):
        shards = ShardSet(str(folder))
        for number in range(len(shards)):
            record = shards.record(number)
            size = record["sizes"][0] if record["sizes"] else None
            scene = Scene(record["sizes"]) if len(record["sizes"]) > 1 else None
            for prompts in sets.prompts:
                talks = PromptFormatter(prompts).conversations(
                    record["annotations"], RandomState(number), size, scene
                )
                yield from (text for talk in talks for text in talk.messages)
