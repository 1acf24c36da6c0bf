"""Pictures of handwritten digits on photographs, and what is said of them: the quickstart's data set.

The scans are scikit-learn's 1,797 digits (8 x 8 pixels), the grey backgrounds are cut from photographs that ship inside
scikit-image's wheel. Scans and photographs are split before anything is composed: what a held-out picture shows was
never trained on. A picture has 2 x 2 places; 2 to 4 of them hold a digit, jittered in place and size. In the hard
setting 3 to 9 digits of 12 to 28 pixels lie anywhere in a picture of four times the area, without overlap.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 56  # of a picture, pixels
CELL = SIDE // 2
HELD_OUT = 0.25  # share of the scans
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHOTOGRAPHS = {
    "train": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "grass.png",
        "moon.png",
    ),
    "heldout": ("rocket.jpg", "gravel.png", "motorcycle_left.png"),
}
# points are annotated to the nearest eighth of the picture, as a person's pointing would be
STEP = 12.5


@dataclass(frozen=True)
class Setting:
    """How hard the pictures are."""

    name: str  # begins the seed of every picture
    side: int  # of a picture, pixels
    sizes: tuple[int, int]  # of a digit's box, pixels, both included
    step: float  # points are annotated to the nearest of it, percent
    # what parts of a picture are called, row by row; as many rows as columns
    places: tuple[str, ...]
    free: bool  # digits lie anywhere, not one in each place
    read: int  # places that are asked about, at most
    sought: int  # digits that are searched for, at most

    def centre(self, box: list[int]) -> list[float]:
        """The middle of a box in percent of the picture, to the nearest `step`."""
        return [
            float(round((a + b) / 2 / self.side * 100 / self.step) * self.step)
            for a, b in ((box[0], box[2]), (box[1], box[3]))
        ]

    def place(self, box: list[int]) -> int:
        """The number of the part of the picture that holds the middle of a box."""
        rows = round(len(self.places) ** 0.5)
        column = (box[0] + box[2]) * rows // (2 * self.side)
        row = (box[1] + box[3]) * rows // (2 * self.side)
        return row * rows + column


EASY = Setting(
    name="",
    side=SIDE,
    sizes=(23, 27),
    step=STEP,
    places=("top left", "top right", "bottom left", "bottom right"),
    free=False,
    read=2,
    sought=3,
)
HARD = Setting(
    name="hard ",
    side=112,
    sizes=(12, 28),
    step=5.0,
    places=(
        *("top left", "top", "top right"),
        *("left", "centre", "right"),
        *("bottom left", "bottom", "bottom right"),
    ),
    free=True,
    read=4,
    sought=4,
)


def load_scans(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scans of a split: number in the data set [n], ink 0..1 [n, 8, 8], digit [n]; the same split every time."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    cut = int(len(order) * HELD_OUT)
    ids = np.sort(order[:cut] if split == "heldout" else order[cut:])
    return ids, (digits.images[ids] / 16).astype(np.float32), digits.target[ids]


def load_photographs(split: str) -> list[np.ndarray]:
    """Grey photographs of a split, float [height, width] in 0..255."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    return [
        np.asarray(Image.open(folder / name).convert("L"), np.float32)
        for name in PHOTOGRAPHS[split]
    ]


class Composer:
    """Draws pictures of one split; `draw(rng)` returns the pixels and what they show."""

    def __init__(self, split: str, setting: Setting = EASY):
        self.setting = setting
        self.ids, self.scans, self.labels = load_scans(split)
        self.photographs = load_photographs(split)
        self.by_digit = [np.flatnonzero(self.labels == d) for d in range(10)]

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
        """Pixels uint8 [side, side]; per digit, the subject first: digit, scan (its id), place, box (pixels)."""
        picture = self._background(rng)
        shown = []
        places = _free_layout(rng, self.setting) if self.setting.free else _layout(rng)
        for place, digit in places:
            scan = int(rng.choice(self.by_digit[digit]))
            left, top, size = place if self.setting.free else _jittered(place, rng)
            ink = Image.fromarray(self.scans[scan]).resize((size, size), Image.Resampling.BICUBIC)
            ink = np.clip(np.asarray(ink), 0, 1)
            window = picture[top : top + size, left : left + size]
            window += ink * (rng.uniform(200, 255) - window)
            box = [left, top, left + size, top + size]
            shown.append(
                {
                    "digit": int(digit),
                    "scan": int(self.ids[scan]),
                    "place": self.setting.place(box),
                    "box": box,
                }
            )
        return picture.round().astype(np.uint8), shown

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        side = self.setting.side
        photograph = self.photographs[rng.integers(len(self.photographs))]
        span = int(rng.integers(side, min(photograph.shape) // 2))
        y, x = (int(rng.integers(0, n - span + 1)) for n in photograph.shape)
        step = max(span // side, 1)
        cut = photograph[y : y + span : step, x : x + span : step][:side, :side]
        cut = np.pad(cut, [(0, side - n) for n in cut.shape], mode="reflect")
        return cut * rng.uniform(0.2, 0.45)  # darker than any ink


def _layout(rng: np.random.Generator) -> list[tuple[int, int]]:
    """(place, digit): the subject 1 to 3 times (equally likely) first, then others."""
    repeats = int(rng.integers(1, 4))
    total = int(rng.integers(max(repeats, 2), 5))
    kinds = rng.permutation(10)
    others = rng.choice(kinds[1:3], total - repeats)
    places = rng.permutation(4)[:total].tolist()
    return list(zip(places, [int(kinds[0])] * repeats + others.tolist(), strict=True))


def _jittered(place: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """(left, top, size) of a digit in one of the 2 x 2 places."""
    size = int(rng.integers(EASY.sizes[0], EASY.sizes[1] + 1))
    left = CELL * (place % 2) + int(rng.integers(0, CELL - size + 1))
    top = CELL * (place // 2) + int(rng.integers(0, CELL - size + 1))
    return left, top, size


def _free_layout(
    rng: np.random.Generator, setting: Setting
) -> list[tuple[tuple[int, int, int], int]]:
    """((left, top, size), digit): the subject 1 to 5 times (equally likely) first, then others, 3 to 9 in all."""
    repeats = int(rng.integers(1, 6))
    total = int(rng.integers(max(repeats, 3), 10))
    kinds = rng.permutation(10)
    others = rng.choice(kinds[1:], total - repeats)
    squares: list[tuple[int, int, int]] = []
    while len(squares) < total:
        size = int(rng.integers(setting.sizes[0], setting.sizes[1] + 1))
        left, top = rng.integers(0, setting.side - size + 1, 2).tolist()
        if all(
            abs(2 * left + size - 2 * x - other) >= size + other
            or abs(2 * top + size - 2 * y - other) >= size + other
            for x, y, other in squares
        ):
            squares.append((left, top, size))
    boxes = [[x, y, x + size, y + size] for x, y, size in squares]
    if not _alone([setting.place(box) for box in boxes]):
        return _free_layout(rng, setting)  # nothing could be read by its place
    return list(zip(squares, [int(kinds[0])] * repeats + others.tolist(), strict=True))


def _alone(places: list[int]) -> list[int]:
    """Numbers of the entries whose place no other has."""
    return [number for number, place in enumerate(places) if places.count(place) == 1]


def captions(shown: list[dict], rng: np.random.Generator, setting: Setting = EASY) -> list[dict]:
    """The first stage: the same digits told of twice, by place and by digit, each from the first to the last.

    Told by place a model learns to read; told by digit it learns to search, without which it neither counts nor points.
    A random order would be noise in every caption.
    """
    there: dict[int, list[int]] = {}
    for d in sorted(shown, key=lambda d: (d["place"], d["digit"])):
        there.setdefault(d["place"], []).append(d["digit"])
    by_place = [
        f"the {setting.places[place]} shows {' and '.join(f'a {digit}' for digit in digits)}"
        for place, digits in there.items()
    ]
    by_digit = []
    for digit in sorted({d["digit"] for d in shown}):
        same = [d for d in shown if d["digit"] == digit]
        same.sort(key=lambda d: setting.centre(d["box"]))
        places = " and ".join(f"the {setting.places[d['place']]}" for d in same)
        by_digit.append(f"{NUMBERS[len(same)]} {digit}{'s' * (len(same) > 1)} at {places}")
    return [{"style": "long_caption", "text": _sentence(parts)} for parts in (by_place, by_digit)]


def _sentence(parts: list[str]) -> str:
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def questions(shown: list[dict], rng: np.random.Generator, setting: Setting = EASY) -> list[dict]:
    """The second stage: places that hold one digit are read, digits are searched for: counted or pointed at, by chance.

    A count is told with its points, so the two teach the same search; both of one digit would be twice the tokens.
    """
    read = readable(shown)
    digits = rng.permutation(sorted({d["digit"] for d in shown}))[: setting.sought]
    asked = [reading(read[i], setting) for i in rng.permutation(len(read))[: setting.read]]
    for digit in digits.tolist():
        search = pointing if rng.random() < 0.5 else counting
        asked.append(search(digit, shown, setting))
    return asked


def examination(shown: list[dict], rng: np.random.Generator, setting: Setting = EASY) -> list[dict]:
    """One question of each kind about a held-out picture; boxes in pixels say what counts as pointed at."""
    pointed = pointing(int(rng.choice(sorted({d["digit"] for d in shown}))), shown, setting)
    pointed["boxes"] = [d["box"] for d in shown if str(d["digit"]) == pointed["label"]]
    read = readable(shown)
    counted = counting(shown[0]["digit"], shown, setting)
    return [reading(read[rng.integers(len(read))], setting), counted, pointed]


def readable(shown: list[dict]) -> list[dict]:
    """The digits that are alone in their place."""
    return [shown[i] for i in _alone([d["place"] for d in shown])]


def reading(one: dict, setting: Setting = EASY) -> dict:
    """Which digit is where `one` is?"""
    place = setting.places[one["place"]]
    return {
        "style": "vqa2",
        "question": f"Which digit is at the {place}?",
        "answer": str(one["digit"]),
    }


def counting(digit: int, shown: list[dict], setting: Setting = EASY) -> dict:
    """How many are there of a digit?"""
    return {
        "style": "point_count",
        "question": f"How many {digit}s are there?",
        **_points(digit, shown, setting),
    }


def pointing(digit: int, shown: list[dict], setting: Setting = EASY) -> dict:
    """Where are they?"""
    points = _points(digit, shown, setting)
    return {"style": "pointing", "question": f"Point to the {digit}.", **points}


def _points(digit: int, shown: list[dict], setting: Setting) -> dict:
    points = [setting.centre(d["box"]) for d in shown if d["digit"] == digit]
    return {"points": points, "point_scale": 100, "label": str(digit)}


def records(
    split: str, stage: str, count: int, setting: Setting = EASY
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """`count` samples as (key, {extension: bytes}), ready for molmo_ds.data.read.writer.

    `stage` is captions, questions or examination. The same arguments give the same bytes; splits, stages and settings
    differ in every picture. metadata names the scans that a picture shows.
    """
    composer = Composer(split, setting)
    about = {"captions": captions, "questions": questions, "examination": examination}[stage]
    for number in range(count):
        rng = np.random.default_rng([*f"{setting.name}{split} {stage}".encode(), number])
        picture, shown = composer.draw(rng)
        buffer = io.BytesIO()
        Image.fromarray(picture).convert("RGB").save(buffer, "JPEG", quality=95)
        row = {
            "images": ["jpg"],
            "annotations": about(shown, rng, setting),
            "metadata": {"split": split, "digits": shown},
        }
        yield f"{stage}-{number:06d}", {"jpg": buffer.getvalue(), "json": json.dumps(row).encode()}
