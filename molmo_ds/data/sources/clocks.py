"""Clocks in photographs, of "It's About Time: Analog Clock Reading in the Wild", for evaluation only.

Layout: the three tables of https://github.com/charigyang/itsabouttime as allenai/molmo's
olmo/hf_datasets/clock_bench.py reads them. The whole picture is shown, not the cut-out of the clock.
"""

import csv
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from molmo_ds.data.sources.source import Item, Row, Source, annotation, picture

QUESTION = "What time is being shown?"
_FOLDERS = {"coco": "trainval_images", "openimg": "data", "movies": "ClockMovies/images"}


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
        *(
            "clock_bench",
            "not stated",
            "allenai/molmo, olmo/hf_datasets/clock_bench.py",
            clock_bench,
        ),
        splits={split: split for split in _FOLDERS},
        read=read_clock_bench,
        by_hand="put data/*_final.csv of https://github.com/charigyang/itsabouttime into DIR and unpack the pictures"
        " that its README links beside them, so that DIR holds trainval_images/, data/ and ClockMovies/images/",
    ),
]
