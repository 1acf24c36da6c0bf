"""Films of made-up scenes whose things move, as mp4 files, with the truth about every frame."""

import dataclasses
import functools
import io
from fractions import Fraction

import numpy as np
from numpy.random import RandomState
from PIL import Image

from molmo_ds.data.made_up.scene import CELL, Scene, Thing, draw_scene
from molmo_ds.data.video import av_package

RATE = 6  # frames a second, so that tracks may be asked for at 1, 2, 3 and 6 of them
SECONDS = 2
STEP = 0.5  # seconds between two moments at which points are given
SPEED = 2  # pixels from frame to frame
LEAST = 3  # things of a film
MOMENTS = tuple(STEP * i for i in range(round(SECONDS / STEP)))


@dataclasses.dataclass(frozen=True)
class Film:
    """A scene whose things move to the right or to the left.

    The second thing appears after half a second, the third is hidden in the middle; the others can be seen all the
    time.
    """

    scene: Scene

    @property
    def numbers(self) -> range:
        """Those of its things."""
        return range(len(self.scene.things))

    def first_sight(self, number: int) -> float:
        """The first of MOMENTS at which a thing can be seen."""
        return next(time for time in MOMENTS if self.shown(number, time))

    def shown(self, number: int, time: float) -> bool:
        """Whether a thing can be seen."""
        if number == 1:
            return time >= STEP
        return number != 2 or not 0.7 < time < 1.3

    def thing(self, number: int, time: float) -> Thing:
        """A thing where it is at a time, hidden or not."""
        thing = self.scene.things[number]
        way = SPEED * round(time * RATE) * (-1) ** number
        inside = min(max(thing.x + way, CELL // 3), self.scene.width - CELL // 3)
        return dataclasses.replace(thing, x=inside)

    def seen(self, time: float) -> dict[int, Thing]:
        """The things that can be seen at a time, by their numbers."""
        return {
            number: self.thing(number, time) for number in self.numbers if self.shown(number, time)
        }

    def share(self, thing: Thing, across: float = 0, down: float = 0) -> dict[str, float]:
        """The place of a thing in percent, as sets publish it; moved by pixels."""
        x = 100 * (thing.x + across) / self.scene.width
        return {"x": x, "y": 100 * (thing.y + down) / self.scene.height}

    def frame(self, time: float) -> Image.Image:
        """The picture at a time."""
        return dataclasses.replace(self.scene, things=tuple(self.seen(time).values())).draw()

    def kinds(self) -> dict[str, list[int]]:
        """The numbers of the things of each kind."""
        found: dict[str, list[int]] = {}
        for number, thing in enumerate(self.scene.things):
            found.setdefault(thing.label, []).append(number)
        return found

    def caption(self) -> str:
        """Sentences that say what is shown and how it moves."""
        ways = [
            f"a {thing.label} moves to the {'left' if number % 2 else 'right'}"
            for number, thing in enumerate(self.scene.things)
        ]
        sign = f"a sign says {self.scene.word} {self.scene.number}"
        return f"On a {self.scene.ground} ground {', '.join(ways)}. Below, {sign}."


@functools.lru_cache(maxsize=64)
def make_film(seed: int, number: int) -> tuple[Film, bytes]:
    """The film of that number and its mp4; every set shows the same ones."""
    rng = RandomState([seed, number])
    scene = draw_scene(rng)
    while len(scene.things) < LEAST:
        scene = draw_scene(rng)
    film = Film(scene)
    frames = [np.asarray(film.frame(i / RATE)) for i in range(RATE * SECONDS)]
    return film, encode(frames)


def encode(frames: list[np.ndarray]) -> bytes:
    """An mp4 of uint8 [height, width, 3] frames, RATE a second; ValueError where the package av is missing."""
    av = av_package()
    out = io.BytesIO()
    height, width, _ = frames[0].shape
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = number
            picture.time_base = Fraction(1, RATE)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return out.getvalue()
