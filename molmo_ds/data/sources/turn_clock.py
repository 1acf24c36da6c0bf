"""A drawn watch face as a picture of its own: turned, scaled, somewhere on white, its colours changed a little.

The odds and ranges are those of PixMoClocks in mattw-ai2/robo_mm_olmo_gantry 6832f80 (olmo/data/pixmo_datasets.py). It
draws them at every visit; here they are drawn once for each clock, since the published mixture comes to half of its
clocks once. Two of its steps are not here: the cut of the lowest 120 pixels, a shadow in its own renderings, and the
shear, which it draws and then sets to 0. The white at the sides is drawn by the face's width, above and below by its
height; there the other way round. With the same draws the pixels are the same.
"""

import math

from numpy.random import RandomState
from PIL import Image, ImageEnhance, ImageOps

MARGIN = 200  # pixels around the face, so that turning cuts nothing off
WHITE = (255, 255, 255)


def turn_clock(face: Image.Image, seed: int) -> Image.Image:
    """The face as RGB on white, with all that is random drawn from RandomState(seed)."""
    rng = RandomState(seed)
    angle = draw_angle(rng)
    scale = rng.uniform(0.3, 2) if rng.random() > 0.5 else rng.uniform(0.3, 1)
    face = ImageOps.expand(face.convert("RGB"), MARGIN, WHITE)
    face = rotate(face, angle, scale)
    ink = ImageOps.invert(face).getbbox()
    return recolour(place(face.crop(ink) if ink else face, rng), rng)


def draw_angle(rng: RandomState) -> float:
    """Degrees: upright in a tenth of the cases, up to 25 in four tenths, else up to 25, 80 or 180."""
    kind = rng.random()
    if kind < 0.1:
        return 0.0
    if kind < 0.5:
        return rng.uniform(-25, 25)
    kind = rng.random()
    if kind < 0.2:
        return rng.uniform(-25, 25)
    return rng.uniform(-80, 80) if kind < 0.6 else rng.uniform(-180, 180)


def rotate(face: Image.Image, angle: float, scale: float) -> Image.Image:
    """Turned clockwise around the centre and scaled, within the same frame."""
    cosine = math.cos(math.radians(angle)) / scale
    sine = math.sin(math.radians(angle)) / scale
    x = face.width / 2
    y = face.height / 2
    back = (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y)
    bilinear = Image.Resampling.BILINEAR
    return face.transform(face.size, Image.Transform.AFFINE, back, bilinear, fillcolor=WHITE)


def place(face: Image.Image, rng: RandomState) -> Image.Image:
    """On more white: up to half of its size on each side in a fifth of the cases, else up to twice its size."""
    near = rng.random() < 0.2
    most = [max(1, side // 2 if near else side * 2) for side in face.size]
    left, right = rng.randint(0, most[0], 2).tolist()
    top, bottom = rng.randint(0, most[1], 2).tolist()
    return ImageOps.expand(face, (left, top, right, bottom), WHITE)


def recolour(image: Image.Image, rng: RandomState) -> Image.Image:
    """Hue within 18 degrees, brightness 0.85 to 1.2, saturation and contrast 0.8 to 1.2."""
    hue, saturation, value = image.convert("HSV").split()
    shift = int(rng.uniform(-0.05, 0.05) * 255)  # towards 0, as there
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.2))
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.8, 1.2))
    return ImageEnhance.Contrast(image).enhance(rng.uniform(0.8, 1.2))
