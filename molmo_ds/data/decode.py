"""Bytes of a picture to upright uint8 RGB, or one sentence why not; videos are video.py's."""

import functools
import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from molmo_ds.data.pixels import colours, orientation, turn

_fast_jpeg = getattr(simplejpeg, "decode_jpeg", None)  # an exported folder does without it
# The formats that are read (MPO as JPEG): not those that start a program, as EPS does. Common ones first
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "AVIF",
    "JPEG2000",
    "ICO",
    "DIB",
    "PPM",
    "PSD",
    "QOI",
    "PCX",
)
FORMATS += ("SGI", "SUN", "XBM", "TGA")
MAX_PIXELS = 89_478_485  # 256 MiB of RGB, where Pillow starts to speak of decompression bombs
_PNG_MARKS = (b"eXIf", b"exif", b"tiff:Orientation")  # of the chunks that may hold an orientation


class BadSample(ValueError):
    """A fault of one sample that will be there on every try: it is counted, logged and skipped, unlike an I/O error."""


def read_size(data: bytes) -> tuple[int, int, int]:
    """(width, height, EXIF orientation 1..8) from the header alone; width and height as stored.

    Raises BadSample where the bytes are no picture or would be larger than MAX_PIXELS.
    """
    with _open(data) as picture:
        return picture.width, picture.height, _orientation(picture, data)


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height once the EXIF orientation is applied."""
    return (height, width) if orientation >= 5 else (width, height)


def load_image(data: bytes) -> np.ndarray:
    """Encoded picture -> uint8 [height, width, 3], EXIF orientation applied.

    Colours become RGB as `pixels.to_pixels` says, and as in the reference. Raises BadSample for anything that is not a
    whole picture: a JPEG that ends early or has a corrupt middle never yields half a picture.
    """
    with _open(data) as picture:
        try:
            if (
                _fast_jpeg is not None
                and picture.format in ("JPEG", "MPO")
                and picture.mode == "RGB"
            ):
                pixels = _fast_jpeg(data, "RGB")  # bit-equal to Pillow's, a third of its time
            else:
                pixels = colours(picture)
        except MemoryError:
            raise
        # decoders raise anything; the bytes lie in memory, so it is no I/O error
        except Exception as error:
            raise BadSample(f"The picture cannot be decoded: {error}.") from None
        upright = turn(pixels, _orientation(picture, data))  # not before the pixels: see there
    return np.ascontiguousarray(upright, dtype=np.uint8)


def count_pictures(data: bytes) -> int:
    """Frames of an animation or pages of a file, of which `load_image` takes the first."""
    with _open(data) as picture:
        try:
            return int(getattr(picture, "n_frames", 1))
        except MemoryError:
            raise
        except Exception as error:  # see load_image
            raise BadSample(f"The picture cannot be decoded: {error}.") from None


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            picture = Image.open(io.BytesIO(data), formats=_formats())
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its words name an address in memory
        what = f"it begins with {data[:8]!r}" if data else "it is empty"
        raise BadSample(f"The picture cannot be read: {what}, as no known format does.") from None
    except Exception as error:  # see load_image
        raise BadSample(f"The picture cannot be read: {error}.") from None
    if picture.width * picture.height > MAX_PIXELS:
        raise BadSample(
            f"The picture has {picture.width} x {picture.height} pixels, more than {MAX_PIXELS} in all."
        )
    return picture


def _orientation(picture: Image.Image, data: bytes) -> int:
    # Pillow decodes a PNG to look for EXIF after the pixels; a second decoding after one that failed raises nothing
    # and leaves half a picture, so pixels come first where they are wanted
    if picture.format == "PNG" and not any(mark in data for mark in _PNG_MARKS):
        return 1
    return orientation(picture)
