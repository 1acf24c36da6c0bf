"""The picture of a question, read from a file, and the points of its answer drawn onto it."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from molmo_ds.data.decode import BadSample, load_image
from molmo_ds.eval.metrics.pointing import extract_points


def read_picture(path: str) -> np.ndarray:
    """A picture's pixels, uint8 [height, width, 3]; ValueError names one that is not there or cannot be read."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"There is no picture {path}.")
    try:
        return load_image(file.read_bytes())
    except BadSample as error:
        raise ValueError(f"{path}: {error}") from None


def draw_points(picture: np.ndarray, text: str, path: str) -> None:
    """Write the picture (uint8 [height, width, 3]) with a ring around every point of the text."""
    image = Image.fromarray(picture)
    scale = max(1, 448 // max(image.size))
    image = image.resize((image.width * scale, image.height * scale))
    pen = ImageDraw.Draw(image)
    radius = max(4, max(image.size) // 60)
    for x, y in extract_points(text, *image.size):
        pen.ellipse(
            (x - radius, y - radius, x + radius, y + radius), outline=(255, 40, 120), width=3
        )
    image.save(path)
