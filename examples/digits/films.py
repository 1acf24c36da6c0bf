"""Videos of handwritten digits that move over photographs, and questions about them: the data of the video proof.

A video has two rows; in each a digit appears at some time, moves from side to side and is gone again. Scans and
photographs are split as those of compose.py: what a held-out video shows was never trained on.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import compose
import numpy as np
from compose import CELL, SIDE
from PIL import Image

RATE = 8  # frames a second
SECONDS = 2.5
APPEAR = (0.0, 0.5, 1.0)
LEAVE = (1.25, 1.75, 2.25)  # between two taken frames
SIZE = CELL  # of a digit's box, pixels
SPEED = 14  # pixels a second: half a patch from one taken frame to the next
STEP = 0.5  # seconds between two frames that Molmo2 takes
WEIGHT = 6.0  # of an answer of one word, which counts for nothing next to a caption of forty


@dataclass(frozen=True)
class Mover:
    """A digit of a video."""

    digit: int
    scan: int  # its number in the data set
    row: int  # 0 = above
    appears: float  # seconds
    leaves: float
    begin: float  # left edge of its box at second 0, pixels
    speed: float  # pixels a second, below 0 to the left

    def shown(self, time: float) -> bool:
        """Whether it can be seen."""
        return self.appears <= time < self.leaves

    def corner(self, time: float) -> tuple[int, int]:
        """Left and top edge of its box, pixels."""
        left = min(max(0, self.begin + self.speed * time), SIDE - SIZE)
        return round(left), self.row * CELL + (CELL - SIZE) // 2

    def centre(self, time: float) -> list[float]:
        """The middle of its box in percent, across to the nearest eighth."""
        left, top = self.corner(time)
        across = (left + SIZE / 2) / SIDE * 100
        return [round(across / compose.STEP) * compose.STEP, 25.0 + 50.0 * self.row]


class Director:
    """Makes the videos of one split."""

    def __init__(self, split: str):
        self.composer = compose.Composer(split)

    def film(self, rng: np.random.Generator) -> tuple[np.ndarray, list[Mover]]:
        """Frames uint8 [n, SIDE, SIDE], and the digits that move in them."""
        composer = self.composer
        leaves = rng.permutation(LEAVE)[:2]
        digits = rng.permutation(10)[:2]
        movers = []
        inks = []
        for row, (digit, leave) in enumerate(zip(digits, leaves)):
            scan = int(rng.choice(composer.by_digit[digit]))
            right = bool(rng.integers(2))
            movers.append(
                Mover(
                    digit=int(digit),
                    scan=int(composer.ids[scan]),
                    row=row,
                    appears=float(rng.choice(APPEAR)),
                    leaves=float(leave),
                    begin=0.0 if right else SIDE - SIZE,
                    speed=SPEED if right else -SPEED,
                )
            )
            image = Image.fromarray(composer.scans[scan]).resize((SIZE, SIZE), Image.BICUBIC)
            inks.append(np.clip(np.asarray(image), 0, 1))
        background = composer._background(rng)
        bright = rng.uniform(200, 255, 2)
        frames = []
        for number in range(round(RATE * SECONDS)):
            frame = background.copy()
            for mover, ink, light in zip(movers, inks, bright):
                if mover.shown(number / RATE):
                    left, top = mover.corner(number / RATE)
                    window = frame[top : top + SIZE, left : left + SIZE]
                    window += ink * (light - window)
            frames.append(frame.round().astype(np.uint8))
        return np.stack(frames), movers


def encode(frames: np.ndarray) -> bytes:
    """An mp4 of grey frames, RATE a second."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.repeat(frame[..., None], 3, 2), format="rgb24")
            picture.pts = number
            picture.time_base = Fraction(1, RATE)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return out.getvalue()


def leaving(movers: list[Mover]) -> dict:
    """Which digit leaves first?"""
    first = min(movers, key=lambda mover: mover.leaves)
    question = "Which digit leaves first?"
    return {
        "style": "video_short_answer",
        "question": question,
        "answer": str(first.digit),
        "weight": WEIGHT,
    }


def appearing(mover: Mover) -> dict:
    """At what time does a digit appear?"""
    return {
        "style": "video_short_answer",
        "question": f"At what time does the {mover.digit} appear?",
        "answer": f"{mover.appears:.1f}",
        "weight": WEIGHT,
    }


def tracking(mover: Mover) -> dict:
    """Where is a digit over time?"""
    times = [one for one in np.arange(0, SECONDS, STEP).tolist() if mover.shown(one)]
    return {
        "style": "video_point_track_per_frame",
        "question": f"Track the {mover.digit}.",
        "label": str(mover.digit),
        "tracks": [{"time": one, "points": {"digit": mover.centre(one)}} for one in times],
        "point_scale": 100,
    }


def telling(movers: list[Mover]) -> dict:
    """All that is shown, time by time."""
    parts = []
    for time in np.arange(0, SECONDS, STEP).tolist():
        seen = [str(mover.digit) if mover.shown(time) else "no" for mover in movers]
        parts.append(f"at {time:.1f} {seen[0]} above {seen[1]}")
    return {"style": "video_long_caption", "question": "Tell it all.", "text": ", ".join(parts)}


def records(split: str, stage: str, count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """`count` samples as (key, {extension: bytes}); the same arguments give the same bytes.

    Samples have one question of each kind, those of any stage but `examination` a caption too.
    """
    director = Director(split)
    for number in range(count):
        rng = np.random.default_rng([*f"{split} {stage}".encode(), number])
        frames, movers = director.film(rng)
        asked = rng.integers(2, size=2)
        about = [leaving(movers), appearing(movers[asked[0]]), tracking(movers[asked[1]])]
        if stage != "examination":
            about.append(telling(movers))
        row = {
            "images": ["mp4"],
            "annotations": about,
            "metadata": {"split": split, "scans": [mover.scan for mover in movers]},
        }
        yield (
            f"{stage}-{number:06d}",
            {"mp4": encode(frames), "json": json.dumps(row).encode()},
        )
