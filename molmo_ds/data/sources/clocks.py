"""Clocks: PixMo's drawn watch faces, and clocks in photographs for evaluation.

Layouts: the dataset card of pixmo-clocks, which publishes no pictures; and the three tables of
https://github.com/charigyang/itsabouttime ("It's About Time: Analog Clock Reading in the Wild") as allenai/molmo's
olmo/hf_datasets/clock_bench.py reads them. Of a photograph the whole is shown, not the cut-out of the clock.
"""

import csv
import functools
import hashlib
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from molmo_ds.data.sources.source import Item, Picture, Row, Source, annotation, picture
from molmo_ds.data.sources.turn_clock import turn_clock

QUESTION = "What time is being shown?"
_FOLDERS = {"coco": "trainval_images", "openimg": "data", "movies": "ClockMovies/images"}


def pixmo_clocks(row: Row, split: str) -> list[Item]:
    """A watch face, turned and placed at random; `text` is the answer in words."""
    keys = (
        "example_id",
        "time_format",
        "shows_seconds",
        "hour_visible",
        "minute_visible",
        "second_visible",
    )
    name = str(row["example_id"])
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    face = Picture(path=f"images/{name}.png", redraw=functools.partial(turn_clock, seed=seed))
    asked = annotation("clocks", question=QUESTION, answer=row["text"])
    return [Item((face,), [asked], {key: row[key] for key in keys})]


def clock_bench(row: Row, split: str) -> list[Item]:
    """The hour and the minute that a clock shows; seconds are not known."""
    known = {
        "image_id": row["img_id"],
        "hour": int(row["hour"]),
        "minute": int(row["minute"]),
        "second": -1,
    }
    return [Item(picture(row["image"]), [annotation("clocks", question=QUESTION)], known)]


def read_clock_bench(folder: Path, split: str) -> Iterator[Row]:
    """SPLIT_final.csv; the pictures' names are decomposed Unicode."""
    with open(folder / f"{split}_final.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield {
                **row,
                "image": f"{_FOLDERS[split]}/{unicodedata.normalize('NFD', row['file_name'])}",
            }


SOURCES = [
    Source(
        "pixmo_clocks",
        "ODC-BY-1.0",
        "dataset card (columns); the names of the picture files are our own",
        pixmo_clocks,
        splits={"train": "train", "validation": "validation"},
        confirmed=False,
        by_hand="put the parquet files of https://huggingface.co/datasets/allenai/pixmo-clocks in DIR/data and render"
        " each row's watch face with facer.io as DIR/images/EXAMPLE_ID.png",
    ),
    Source(
        "clock_bench",
        "not stated",
        "allenai/molmo, olmo/hf_datasets/clock_bench.py",
        clock_bench,
        splits={split: split for split in _FOLDERS},
        read=read_clock_bench,
        by_hand="put data/*_final.csv of https://github.com/charigyang/itsabouttime into DIR and unpack the pictures"
        " that its README links to, so that DIR holds trainval_images/, data/ and ClockMovies/images/",
    ),
]
