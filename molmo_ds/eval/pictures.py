"""The picture or the video of a question, read from a file, and the points of its answer drawn onto it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from molmo_ds.data.decode import BadSample, load_image
from molmo_ds.data.sample.point_text import read_points
from molmo_ds.data.show.film import contact_sheet
from molmo_ds.data.video import frames_at, video_size
from molmo_ds.eval.metrics.pointing import extract_points


@dataclass(frozen=True)
class Video:
    """The bytes of a video, and what of it is shown."""

    data: bytes
    keys: dict[str, Any]  # clip and num_frames, as in a record

    @property
    def record(self) -> dict[str, Any]:
        """As SampleBuilder.see_video takes it."""
        return {"images": ["video"], "pixels": [self.data], **self.keys}


def read_picture(path: str) -> np.ndarray:
    """A picture's pixels, uint8 [height, width, 3]; ValueError names one that is not there or cannot be read."""
    try:
        return load_image(_bytes(path, "picture"))
    except BadSample as error:
        raise ValueError(f"{path}: {error}") from None


def read_video(path: str, clip: list[float] | None = None, frames: int | None = None) -> Video:
    """A video of which a clip (begin, end in seconds) and so many frames are shown; errors as of `read_picture`."""
    data = _bytes(path, "video")
    try:
        video_size(data)
    except BadSample as error:
        raise ValueError(f"{path}: {error}") from None
    keys = {"clip": clip, "num_frames": frames}
    return Video(data, {name: value for name, value in keys.items() if value is not None})


def draw_points(picture: np.ndarray, text: str) -> Image.Image:
    """The picture (uint8 [height, width, 3]) with a ring around every point of the text."""
    image = Image.fromarray(picture)
    scale = max(1, 448 // max(image.size))
    image = image.resize((image.width * scale, image.height * scale))
    pen = ImageDraw.Draw(image)
    radius = max(4, max(image.size) // 60)
    for x, y in extract_points(text, *image.size):
        pen.ellipse(
            (x - radius, y - radius, x + radius, y + radius), outline=(255, 40, 120), width=3
        )
    return image


def draw_track(video: Video, text: str) -> Image.Image:
    """The frames at the times of which the text gives points, with these; the first frame where it gives none."""
    points = read_points(text, 1, 1)
    times = sorted({point.place for point in points}) or [0.0]
    frames = frames_at(video.data, times, video.keys.get("clip"))
    marks = [[(p.number, p.x, p.y) for p in points if p.place == time] for time in times]
    return Image.fromarray(contact_sheet(frames, times, marks))


def _bytes(path: str, what: str) -> bytes:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"There is no {what} {path}.")
    return file.read_bytes()
