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
    largest = 2 if rng.random() > 0.5 else 1
    scale = rng.uniform(0.3, largest)
    face = face.convert("RGB")
    face = ImageOps.expand(face, MARGIN, WHITE)
    face = rotate(face, angle, scale)
    ink = ImageOps.invert(face).getbbox()
    if ink:
        face = face.crop(ink)
    face = place(face, rng)
    return recolour(face, rng)


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
    if kind < 0.6:
        return rng.uniform(-80, 80)
    return rng.uniform(-180, 180)


def rotate(face: Image.Image, angle: float, scale: float) -> Image.Image:
    """Turned clockwise around the centre and scaled, within the same frame."""
    radians = math.radians(angle)
    cosine = math.cos(radians) / scale
    sine = math.sin(radians) / scale
    x = face.width / 2
    y = face.height / 2
    right = x - cosine * x - sine * y
    down = y + sine * x - cosine * y
    back = (cosine, sine, right, -sine, cosine, down)
    return face.transform(
        face.size,
        Image.Transform.AFFINE,
        back,
        Image.Resampling.BILINEAR,
        fillcolor=WHITE,
    )


def place(face: Image.Image, rng: RandomState) -> Image.Image:
    """On more white: up to half of its size on each side in a fifth of the cases, else up to twice its size."""
    near = rng.random() < 0.2
    share = 0.5 if near else 2
    width, height = (max(1, int(side * share)) for side in face.size)
    left, right = rng.randint(0, width, 2).tolist()
    top, bottom = rng.randint(0, height, 2).tolist()
    return ImageOps.expand(face, (left, top, right, bottom), WHITE)


def recolour(image: Image.Image, rng: RandomState) -> Image.Image:
    """Hue within 18 degrees, brightness 0.85 to 1.2, saturation and contrast 0.8 to 1.2."""
    hue, saturation, value = image.convert("HSV").split()
    shift = int(rng.uniform(-0.05, 0.05) * 255)  # towards 0, as there
    turned = [(level + shift) % 256 for level in range(256)]
    hue = hue.point(turned)
    image = Image.merge("HSV", (hue, saturation, value))
    image = image.convert("RGB")
    brightness = rng.uniform(0.85, 1.2)
    image = ImageEnhance.Brightness(image).enhance(brightness)
    colour = rng.uniform(0.8, 1.2)
    image = ImageEnhance.Color(image).enhance(colour)
    contrast = rng.uniform(0.8, 1.2)
    return ImageEnhance.Contrast(image).enhance(contrast)
