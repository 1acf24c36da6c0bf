"""Pictures of handwritten digits on photographs, and what is said of them: the quickstart's data set.

The scans are scikit-learn's 1,797 digits (8 x 8 pixels), the grey backgrounds are cut from photographs that ship inside
scikit-image's wheel. Scans and photographs are split before anything is composed: what a held-out picture shows was
never trained on. A picture has 2 x 2 places; 2 to 4 of them hold a digit, jittered in place and size.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 56  # of a picture, pixels
CELL = SIDE // 2
SIZES = (23, 27)  # of a digit's box, pixels, both included
HELD_OUT = 0.25  # share of the scans
PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("no", "one", "two", "three", "four")
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

    def __init__(self, split: str):
        self.ids, self.scans, self.labels = load_scans(split)
        self.photographs = load_photographs(split)
        self.by_digit = [np.flatnonzero(self.labels == d) for d in range(10)]

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
        """Pixels uint8 [SIDE, SIDE]; per digit, the subject first: digit, scan (its id), place, box (pixels)."""
        picture = self._background(rng)
        shown = []
        for place, digit in zip(*_layout(rng)):
            scan = int(rng.choice(self.by_digit[digit]))
            size = int(rng.integers(SIZES[0], SIZES[1] + 1))
            left = CELL * (place % 2) + int(rng.integers(0, CELL - size + 1))
            top = CELL * (place // 2) + int(rng.integers(0, CELL - size + 1))
            ink = Image.fromarray(self.scans[scan]).resize((size, size), Image.Resampling.BICUBIC)
            ink = np.clip(np.asarray(ink), 0, 1)
            window = picture[top : top + size, left : left + size]
            window += ink * (rng.uniform(200, 255) - window)
            shown.append(
                {
                    "digit": int(digit),
                    "scan": int(self.ids[scan]),
                    "place": int(place),
                    "box": [left, top, left + size, top + size],
                }
            )
        return picture.round().astype(np.uint8), shown

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        photograph = self.photographs[rng.integers(len(self.photographs))]
        span = int(rng.integers(SIDE, min(photograph.shape) // 2))
        y, x = (int(rng.integers(0, n - span + 1)) for n in photograph.shape)
        step = max(span // SIDE, 1)
        cut = photograph[y : y + span : step, x : x + span : step][:SIDE, :SIDE]
        cut = np.pad(cut, [(0, SIDE - n) for n in cut.shape], mode="reflect")
        return cut * rng.uniform(0.2, 0.45)  # darker than any ink


def _layout(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Places that hold a digit, and the digits: the subject 1 to 3 times (equally likely) first, then others."""
    repeats = int(rng.integers(1, 4))
    total = int(rng.integers(max(repeats, 2), 5))
    kinds = rng.permutation(10)
    others = rng.choice(kinds[1:3], total - repeats)
    return rng.permutation(4)[:total].tolist(), [int(kinds[0])] * repeats + others.tolist()


def centre(box: list[int]) -> list[float]:
    """The middle of a box in percent of the picture, to the nearest STEP."""
    return [
        float(round((a + b) / 2 / SIDE * 100 / STEP) * STEP)
        for a, b in ((box[0], box[2]), (box[1], box[3]))
    ]


def captions(shown: list[dict], rng: np.random.Generator) -> list[dict]:
    """The first stage: the same digits told of twice, by place and by digit, each in a random order.

    Told by place a model learns to read; told by digit it learns to search, without which it neither counts nor points.
    """
    order = rng.permutation(len(shown))
    by_place = [f"the {PLACES[shown[i]['place']]} shows a {shown[i]['digit']}" for i in order]
    by_digit = []
    for digit in rng.permutation(sorted({d["digit"] for d in shown})):
        same = sorted((d for d in shown if d["digit"] == digit), key=lambda d: centre(d["box"]))
        places = " and ".join(f"the {PLACES[d['place']]}" for d in same)
        by_digit.append(f"{NUMBERS[len(same)]} {digit}{'s' * (len(same) > 1)} at {places}")
    return [{"style": "long_caption", "text": _sentence(parts)} for parts in (by_place, by_digit)]


def _sentence(parts: list[str]) -> str:
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def questions(shown: list[dict]) -> list[dict]:
    """The second stage: every place that holds a digit is read, every digit that is shown is counted and pointed at."""
    digits = sorted({d["digit"] for d in shown})
    return [
        *(reading(d) for d in shown),
        *(counting(digit, shown) for digit in digits),
        *(pointing(digit, shown) for digit in digits),
    ]


def examination(shown: list[dict], rng: np.random.Generator) -> list[dict]:
    """One question of each kind about a held-out picture; boxes in pixels say what counts as pointed at."""
    pointed = pointing(int(rng.choice(sorted({d["digit"] for d in shown}))), shown)
    pointed["boxes"] = [d["box"] for d in shown if str(d["digit"]) == pointed["label"]]
    return [reading(shown[rng.integers(len(shown))]), counting(shown[0]["digit"], shown), pointed]


def reading(one: dict) -> dict:
    """Which digit is where `one` is?"""
    place = PLACES[one["place"]]
    return {
        "style": "vqa2",
        "question": f"Which digit is at the {place}?",
        "answer": str(one["digit"]),
    }


def counting(digit: int, shown: list[dict]) -> dict:
    """How many are there of a digit?"""
    return {
        "style": "point_count",
        "question": f"How many {digit}s are there?",
        **_points(digit, shown),
    }


def pointing(digit: int, shown: list[dict]) -> dict:
    """Where are they?"""
    return {"style": "pointing", "question": f"Point to the {digit}.", **_points(digit, shown)}


def _points(digit: int, shown: list[dict]) -> dict:
    points = [centre(d["box"]) for d in shown if d["digit"] == digit]
    return {"points": points, "point_scale": 100, "label": str(digit)}


def records(split: str, stage: str, count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """`count` samples as (key, {extension: bytes}), ready for molmo_ds.data.read.writer.

    `stage` is captions, questions or examination. The same arguments give the same bytes; splits and stages differ in
    every picture. metadata names the scans that a picture shows.
    """
    composer = Composer(split)
    for number in range(count):
        rng = np.random.default_rng([*f"{split} {stage}".encode(), number])
        picture, shown = composer.draw(rng)
        if stage == "captions":
            about = captions(shown, rng)
        else:
            about = questions(shown) if stage == "questions" else examination(shown, rng)
        buffer = io.BytesIO()
        Image.fromarray(picture).convert("RGB").save(buffer, "JPEG", quality=95)
        row = {
            "images": ["jpg"],
            "annotations": about,
            "metadata": {"split": split, "digits": shown},
        }
        yield f"{stage}-{number:06d}", {"jpg": buffer.getvalue(), "json": json.dumps(row).encode()}
