"""Pixels as pictures inside a page, and the colour of each document."""

import base64
import colorsys
import io

import numpy as np
from PIL import Image

HUES = (212, 152, 28, 282, 340, 188, 60, 250)  # one per document of a sequence, again and again


def img(pixels: np.ndarray, kind: str) -> str:
    """Pixels as an inline picture."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/{kind.lower()};base64,{data}" alt="">'


def colour(hue: int, light: float) -> tuple[int, int, int]:
    """RGB of a hue in degrees at 55 % saturation."""
    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue / 360, light, 0.55))
