"""Scenes of coloured shapes with a sign, and clock faces: drawn from random numbers, with the truth about them."""

import io
import math
from collections.abc import Container
from dataclasses import dataclass

from numpy.random import RandomState
from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 150, 60),
    "blue": (50, 80, 200),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle")
GROUNDS = {"white": (250,) * 3, "grey": (190,) * 3, "yellow": (240, 225, 150)}
WORDS = ("maple", "harbor", "lemon", "signal", "garden", "velvet", "copper", "window")
CELL = 48  # pixels: things stand on a grid of 4 x 3, the sign below
COLUMNS = 4
ROWS = 3


@dataclass(frozen=True)
class Thing:
    """A shape around the middle (x, y) in pixels."""

    colour: str
    shape: str
    x: float
    y: float

    @property
    def label(self) -> str:
        """The kind of thing, such as `red circle`."""
        return f"{self.colour} {self.shape}"


def absent(labels: Container[str]) -> str:
    """A kind of thing that is none of these, the first of all kinds."""
    return next(
        f"{colour} {shape}"
        for colour in COLOURS
        for shape in SHAPES
        if f"{colour} {shape}" not in labels
    )


@dataclass(frozen=True)
class Scene:
    """Shapes on a ground, above a sign with a word and a number."""

    things: tuple[Thing, ...]
    ground: str
    word: str
    number: int

    width = CELL * COLUMNS
    height = CELL * (ROWS + 1)

    def places(self) -> dict[str, list[tuple[float, float]]]:
        """The middles of the things of each kind, in pixels."""
        found: dict[str, list[tuple[float, float]]] = {}
        for thing in self.things:
            found.setdefault(thing.label, []).append((thing.x, thing.y))
        return found

    def percent(self, label: str) -> list[tuple[float, float]]:
        """The middles of the things of one kind, in percent of the picture; none for a kind that is not there."""
        pixels = self.places().get(label, [])
        return [(100 * x / self.width, 100 * y / self.height) for x, y in pixels]

    def caption(self) -> str:
        """Sentences that say all there is."""
        kinds = [f"{len(places)} {label}" for label, places in self.places().items()]
        things = " and ".join(kinds)
        sign = f"a sign says {self.word} {self.number}"
        return f"On a {self.ground} ground there is {things}. Below, {sign}."

    def questions(self) -> list[tuple[str, str]]:
        """Questions with short answers."""
        label, places = next(iter(self.places().items()))
        return [
            (f"How many {label}s are there?", str(len(places))),
            ("Which word is on the sign?", self.word),
            ("Which number is on the sign?", str(self.number)),
            ("What colour is the ground?", self.ground),
        ]

    def draw(self) -> Image.Image:
        """The picture."""
        image = Image.new("RGB", (self.width, self.height), GROUNDS[self.ground])
        pen = ImageDraw.Draw(image)
        half = CELL // 3
        for thing in self.things:
            box = (thing.x - half, thing.y - half, thing.x + half, thing.y + half)
            colour = COLOURS[thing.colour]
            if thing.shape == "circle":
                pen.ellipse(box, fill=colour)
            elif thing.shape == "square":
                pen.rectangle(box, fill=colour)
            else:
                left, top, right, bottom = box
                pen.polygon([(left, bottom), (right, bottom), (thing.x, top)], fill=colour)
        text = f"{self.word} {self.number}"
        pen.text((6, CELL * ROWS + 8), text, fill="black", font=ImageFont.load_default(24))
        return image


def draw_scene(rng: RandomState, most: int = 5) -> Scene:
    """A scene of one kind of thing or two, at most `most` of them."""
    kinds = []
    for _ in range(2):
        colour = str(rng.choice([*COLOURS]))
        kinds.append((colour, str(rng.choice(SHAPES))))
    cells = rng.permutation(COLUMNS * ROWS)[: rng.randint(1, most + 1)]
    things = []
    for number, cell in enumerate(cells.tolist()):
        colour, shape = kinds[0] if number == 0 else kinds[rng.randint(2)]
        x = (cell % COLUMNS + 0.5) * CELL + rng.randint(-6, 7)
        y = (cell // COLUMNS + 0.5) * CELL + rng.randint(-6, 7)
        things.append(Thing(colour, shape, x, y))
    ground = str(rng.choice([*GROUNDS]))
    return Scene(tuple(things), ground, str(rng.choice(WORDS)), int(rng.randint(10, 100)))


def draw_clock(hour: int, minute: int) -> Image.Image:
    """A white square with a clock's face."""
    image = Image.new("RGB", (160, 160), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((10, 10, 150, 150), outline="black", width=4)
    _draw_hand(pen, turns=hour % 12 / 12 + minute / 720, length=36, width=6)
    _draw_hand(pen, turns=minute / 60, length=58, width=3)
    return image


def _draw_hand(pen: ImageDraw.ImageDraw, turns: float, length: int, width: int) -> None:
    angle = 2 * math.pi * turns
    end = (80 + length * math.sin(angle), 80 - length * math.cos(angle))
    pen.line(((80, 80), end), fill="black", width=width)


def encode(image: Image.Image, kind: str = "JPEG") -> bytes:
    """A picture's file."""
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()
