"""PixMo's places: pointing, counting, explanations with points, and the set that pointing is evaluated on.

Layouts: the dataset cards of pixmo-points and pixmo-count on the hub (2024-12), and for the others the columns that
the loaders of allenai/molmo (olmo/data/pixmo_datasets.py) read. The card of pixmo-points says that points are pixels;
its rows hold percent, and the loader treats them so. `collection_method` divides pixmo-points: rows of `pointing` are
the basic set, rows of `counting` the one of high frequency. In allenai/molmo 793fa38 the two views of a set have each
other's names; here, as in its later code, a name says what it is.
"""

import functools
from typing import Any

import numpy as np

from molmo_ds.data.sources.masks import runs_of
from molmo_ds.data.sources.pixmo import HASHED, LICENCE, LOADER, MOST_PICTURES, TRAIN, item
from molmo_ds.data.sources.source import Cut, Item, LeftOut, Picture, Row, Source, annotation
from molmo_ds.data.wording.pictures import SEVERAL

PUBLISHED = Cut(points=40)  # arXiv 2409.17146v2: counts above 40 are dropped
# its later code: what has more would be cut at the end of a sequence
LATER = Cut(points=60, points_of_record=60, styles=("point_count", "pointing"))


def places_of(value: Any) -> list[list[float]]:
    """A column of points, a list of structs or a struct of lists, as pairs."""
    if isinstance(value, dict):
        return [[x, y] for x, y in zip(value["x"], value["y"])]
    return [[p["x"], p["y"]] for p in value]


def points(row: Row, split: str, style: str, move: bool = False) -> list[Item]:
    """Every place of something that a person named, or none; `move` those outside of the picture to its edge."""
    places = places_of(row["points"])
    places = _inside(places) if move else places
    return item(row, [annotation(style, label=row["label"], points=places, point_scale=100)])


def several(row: Row, split: str) -> list[Item]:
    """Places of one thing in two to five pictures, whose labels may word it each in its own way.

    Labels are the same thing where they are equal but for case, blanks and marks at their ends; the reference reads a
    column for that, which the published set does not have. One label and one style are drawn at each visit.
    """
    labels = row["labels"]
    if not 2 <= len(labels) <= MOST_PICTURES:
        raise LeftOut(f"less than 2 or more than {MOST_PICTURES} pictures")
    if not len(row["image_urls"]) == len(row["points"]) == len(labels):
        raise LeftOut("another number of pictures than of labels or of groups of points")
    groups = [_inside(places_of(value)) for value in row["points"]]
    alike: dict[str, list[int]] = {}
    for number, label in enumerate(labels, 1):
        alike.setdefault(" ".join(label.split()).casefold().strip(" .,;:!?"), []).append(number)
    asked = [
        annotation(
            style,
            label=labels[numbers[0] - 1],
            point_groups=[{"image": one, "points": groups[one - 1]} for one in numbers],
            point_scale=100,
        )
        for numbers in alike.values()
        for style in SEVERAL
    ]
    shown = tuple(Picture(url=url) for url in row["image_urls"])
    return [Item(shown, [{"one_of": asked}], {"image_urls": list(row["image_urls"])})]


def _inside(places: list[list[float]]) -> list[list[float]]:
    """A few points of the set lie a little outside of their picture."""
    return [[min(max(x, 0.0), 100.0), min(max(y, 0.0), 100.0)] for x, y in places]


def points_eval(row: Row, split: str) -> list[Item]:
    """Places for evaluation, each with the mask in which a point counts; `masks` of height x width truth values."""
    places = places_of(row["points"])
    masks = [runs_of(np.asarray(mask, dtype=bool)) for mask in row["masks"]]
    asked = annotation("pointing", label=row["label"], points=places, point_scale=100, masks=masks)
    return item(row, [asked])


def count(row: Row, split: str, style: str) -> list[Item]:
    """Detected objects; points in pixels, missing in the evaluation splits."""
    known = split == "train" and row.get("points") is not None
    places = places_of(row["points"]) if known else None
    [found] = item(row, [annotation(style, label=row["label"], points=places)])
    found.metadata["count"] = row["count"]
    return [found]


def point_explanations(row: Row, split: str) -> list[Item]:
    """An answer whose placeholders <|POINT|> stand for points in percent."""
    answer = row["parsed_response"]
    if answer is None:
        raise LeftOut("answer that its publishers could not parse")
    texts = zip(row["points"], row["alt_text"], row["inline_text"])
    marks = [{"points": places_of(p), "alt": alt, "text": text} for p, alt, text in texts]
    if answer.count("<|POINT|>") != len(marks):
        raise LeftOut("answer with another number of placeholders than of groups of points")
    asked = annotation(
        "point_qa", question=row["question"], answer=answer, inline_points=marks, point_scale=100
    )
    return item(row, [asked])


_CHANGED = (
    "pixmo_count points, as in the reference; until 2026-11-29 it counted here, which is now"
    " pixmo_count_counting."
)


def _pixmo_points(name: str, style: str, method: str, cut: Cut, move: bool = False) -> Source:
    return Source(
        name,
        LICENCE,
        f"dataset card; {LOADER} (scale)",
        functools.partial(points, style=style, move=move),
        TRAIN,
        "allenai/pixmo-points",
        only=("collection_method", method),
        cut=cut,
        without="pixmo_points_eval",
        **HASHED,
    )


def _pixmo_count(name: str, style: str, **known: Any) -> Source:
    return Source(
        name,
        LICENCE,
        "dataset card",
        functools.partial(count, style=style),
        hub="allenai/pixmo-count",
        url="image_url",
        sha256="image_sha256",
        **known,
    )


SOURCES = [
    _pixmo_points("pixmo_points", "pointing", "pointing", PUBLISHED),
    _pixmo_points("pixmo_points_counting", "point_count", "pointing", PUBLISHED),
    _pixmo_points("pixmo_points_high_freq", "pointing", "counting", PUBLISHED),
    _pixmo_points("pixmo_points_high_freq_counting", "point_count", "counting", PUBLISHED),
    _pixmo_points("pixmo_points_train", "pointing", "pointing", LATER, move=True),
    _pixmo_points("pixmo_points_high_freq_train", "pointing", "counting", LATER, move=True),
    Source(
        "pixmo_points_eval",
        LICENCE,
        LOADER,
        points_eval,
        {"test": "test"},
        hub="allenai/pixmo-points-eval",
        aliases=("pointing_eval",),
        **HASHED,
    ),
    Source(
        "pixmo_multi_points",
        LICENCE,
        "dataset card",
        several,
        TRAIN,
        "allenai/Molmo2-MultiImagePoint",  # its image_sha256s are of the addresses
        url="image_urls",
        without="pixmo_points_eval",
    ),
    _pixmo_count("pixmo_count", "pointing", aliases=("pixmo_count_pointing",), changed=_CHANGED),
    _pixmo_count("pixmo_count_counting", "point_count"),
    _pixmo_count("pixmo_count_train", "pointing", cut=Cut(styles=LATER.styles)),
    Source(
        "pixmo_pointing_explanations",
        LICENCE,
        LOADER,
        point_explanations,
        TRAIN,
        hub="allenai/pixmo-point-explanations",
        aliases=("pixmo_point_explanations",),
        cut=Cut(halve=True),
        **HASHED,
    ),
]
