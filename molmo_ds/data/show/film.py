"""The frames of a video as training takes them, with their times and with the points and tracks of its annotations."""

import html
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from molmo_ds.data.sample.annotation import Annotation, read_annotation
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.sample.footage import footage, subtitles
from molmo_ds.data.sample.pointed import NEAR, Scene
from molmo_ds.data.sample.times import stamp
from molmo_ds.data.show.pictures import HUES, colour, img

WIDEST = 200  # pixels of a frame on the page
MOST = 64  # frames that are shown of one video
WHITE = (255, 255, 255)
YELLOW = (255, 255, 0)
BLACK = (0, 0, 0)
Mark = tuple[str, float, float]  # name, x and y as shares


def film_strip(record: dict[str, Any], builder: SampleBuilder) -> str:
    """The frames of a record with `pixels` that holds a video, the points at each time drawn into them."""
    film = footage(record, builder.video)
    frames = builder.frames(record)
    annotations = [read_annotation(one) for one in record["annotations"]]
    cells = []
    scene = Scene(record["sizes"], film.times)
    for time, frame in list(zip(film.times, frames))[:MOST]:
        marks: list[Mark] = []
        for one in annotations:
            marks += marks_at(one, time, scene)
        picture = img(drawn(frame, marks), "JPEG")
        caption = f"<figcaption>{stamp(time)} s</figcaption>"
        cells.append(f"<figure>{picture}{caption}</figure>")
    left = len(film.times) - len(cells)
    more = f"<p>and {left} more frames</p>" if left else ""
    said = subtitles(record, film.times, builder.video.subtitle_seconds)
    text = f"<pre>{html.escape(said)}</pre>" if said else ""
    return f'<div class="film">{"".join(cells)}</div>{more}{text}'


def marks_at(annotation: Annotation, time: float, scene: Scene) -> Iterator[Mark]:
    """Points of an annotation at one time."""
    for group in annotation.point_groups or ():
        if group.time is not None and abs(group.time - time) < 0.05:  # as both are written
            for number, point in enumerate(group.points, start=1):
                yield str(number), *_share(point, annotation, scene)
    for moment in annotation.tracks or ():
        if abs(moment.time - time) < NEAR:
            for name, point in moment.points.items():
                if name not in moment.hidden:
                    yield name, *_share(point, annotation, scene)


def _share(point: list[float], annotation: Annotation, scene: Scene) -> tuple[float, float]:
    across, down = scene.scale(annotation.point_scale)
    return point[0] / across, point[1] / down


def contact_sheet(
    frames: list[np.ndarray],
    times: list[float],
    marks: list[list[Mark]],
    columns: int = 8,
) -> np.ndarray:
    """Frames of equal size in rows, tiny ones enlarged, with their times and marks: uint8 [height, width, 3]."""
    cells = []
    for frame, time, here in zip(frames, times, marks, strict=True):
        scale = max(1, WIDEST // max(frame.shape[:2]))
        large = frame.repeat(scale, 0).repeat(scale, 1)
        cell = Image.fromarray(drawn(large, here))
        pen = ImageDraw.Draw(cell)
        pen.text(
            (3, 1),
            f"{stamp(time)} s",
            fill=YELLOW,
            stroke_width=1,
            stroke_fill=BLACK,
        )
        cells.append(np.asarray(cell))
    columns = min(columns, len(cells))
    blank = np.zeros_like(cells[0])
    cells += [blank] * (-len(cells) % columns)
    rows = []
    for first in range(0, len(cells), columns):
        row = cells[first : first + columns]
        rows.append(np.concatenate(row, 1))
    return np.concatenate(rows)


def drawn(frame: np.ndarray, marks: list[Mark]) -> np.ndarray:
    """A frame at most WIDEST large with a ring at each mark, coloured by its name."""
    small = Image.fromarray(frame)
    small.thumbnail((WIDEST, WIDEST))
    pen = ImageDraw.Draw(small)
    for name, x, y in marks:
        x *= small.width
        y *= small.height
        ring = (x - 5, y - 5, x + 5, y + 5)
        hue = colour(HUES[sum(name.encode()) % len(HUES)], 0.55)
        pen.ellipse(ring, outline=WHITE, width=4)
        pen.ellipse(ring, outline=hue, width=2)
        label = (x + 7, y - 6)
        pen.text(label, name, fill=hue, stroke_width=1, stroke_fill=WHITE)
    return np.asarray(small)
