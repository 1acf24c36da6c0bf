"""Bytes of a picture or a video to upright uint8 RGB, or one sentence why not."""

import functools
import io
import warnings
from types import ModuleType

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

# The formats that are read (MPO as JPEG): not those that start a program, as EPS does. Common ones first
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "DIB", "PPM", "PSD", "QOI", "PCX")
FORMATS += ("SGI", "SUN", "XBM", "TGA")
MAX_PIXELS = 89_478_485  # 256 MiB of RGB, where Pillow starts to speak of decompression bombs
_ORIENTATION = 0x0112  # the EXIF tag
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
    """Encoded picture -> uint8 [height, width, 3], EXIF orientation applied; other modes as `to_rgb` converts them.

    Raises BadSample for anything that is not a whole picture: a JPEG that ends early or has a corrupt middle never
    yields half a picture.
    """
    with _open(data) as picture:
        try:
            if picture.format in ("JPEG", "MPO") and picture.mode == "RGB":
                pixels = simplejpeg.decode_jpeg(data, "RGB")  # bit-equal to Pillow's, a third of its time
            else:
                pixels = to_rgb(picture)
        except (MemoryError, BadSample):
            raise
        except Exception as error:  # decoders raise anything; the bytes lie in memory, so it is no I/O error
            raise BadSample(f"The picture cannot be decoded: {error}.") from None
        orientation = _orientation(picture, data)  # not before: see there
    return np.ascontiguousarray(_turn(pixels, orientation), dtype=np.uint8)


def to_pixels(picture: Image.Image) -> np.ndarray:
    """An opened picture -> uint8 [height, width, 3], as `load_image` makes them of its file.

    Raises BadSample where it cannot be decoded, or has pixels of which nobody knows which value is white.
    """
    try:
        pixels = to_rgb(picture)
    except (MemoryError, BadSample):
        raise
    except Exception as error:  # see load_image
        raise BadSample(f"The picture cannot be decoded: {error}.") from None
    return np.ascontiguousarray(_turn(pixels, _orientation(picture)), dtype=np.uint8)


def to_rgb(picture: Image.Image) -> np.ndarray:
    """A picture of any mode -> uint8 [height, width, 3], not yet turned.

    16-bit grey keeps its high byte. Alpha and transparent colours are dropped without compositing; palettes, grey,
    1-bit, CMYK, YCbCr and HSV become RGB as Pillow converts them (the reference does so too). Raises BadSample for
    floats and 32-bit integers, whose white is not defined; ValueError where Pillow knows no way (LAB).
    """
    if picture.mode == "F" or picture.mode.startswith("I"):
        values = np.asarray(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            kind = "floats" if picture.mode == "F" else "32-bit integers"
            raise BadSample(f"Its pixels are {kind}, of which nobody says which is white; store it with 8 or 16 bits.")
        return np.repeat((values.astype(np.int64) >> 8)[..., None], 3, axis=2).astype(np.uint8)
    if picture.mode in ("La", "RGBa"):  # premultiplied: Pillow goes by the plain mode only
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
    return np.asarray(picture.convert("RGB"))


def count_pictures(data: bytes) -> int:
    """Frames of an animation or pages of a file, of which `load_image` takes the first."""
    with _open(data) as picture:
        try:
            return int(getattr(picture, "n_frames", 1))
        except MemoryError:
            raise
        except Exception as error:  # see load_image
            raise BadSample(f"The picture cannot be decoded: {error}.") from None


def load_frames(data: bytes, frames: int) -> list[np.ndarray]:
    """Encoded video -> `frames` evenly spaced uint8 [height, width, 3]; a shorter video repeats its frames.

    Raises ValueError where the package `av` is missing, BadSample where the bytes are no video.
    """
    av = _av()
    try:
        with av.open(io.BytesIO(data)) as video:
            if not video.streams.video:  # a file cut short may open all the same
                raise BadSample("The video has no frame.")
            count = sum(1 for _ in video.decode(video=0))
        wanted = np.linspace(0, count - 1, frames).round().astype(int).tolist()
        with av.open(io.BytesIO(data)) as video:  # decoded twice, so that a long video does not fill the memory
            kept = {i: f.to_ndarray(format="rgb24") for i, f in enumerate(video.decode(video=0)) if i in wanted}
    except (MemoryError, BadSample):
        raise
    except Exception as error:  # see load_image
        raise BadSample(f"The video cannot be decoded: {error}.") from None
    if not kept:
        raise BadSample("The video has no frame.")
    return [kept[i] for i in wanted]


def check_video(data: bytes) -> None:
    """Decode the first frame of a video; errors as of `load_frames`, but a video that is cut later passes."""
    av = _av()
    try:
        with av.open(io.BytesIO(data)) as video:
            frame = next(video.decode(video=0), None) if video.streams.video else None
    except MemoryError:
        raise
    except Exception as error:  # see load_image
        raise BadSample(f"The video cannot be decoded: {error}.") from None
    if frame is None:
        raise BadSample("The video has no frame.")


def _av() -> ModuleType:
    try:
        import av
    except ImportError:
        raise ValueError(
            "Videos need the package av: pip install av, or store frames as pictures (KEY.0.jpg, ...)."
        ) from None
    return av


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
        raise BadSample(f"The picture has {picture.width} x {picture.height} pixels, more than {MAX_PIXELS} in all.")
    return picture


def _orientation(picture: Image.Image, data: bytes | None = None) -> int:
    # Pillow decodes a PNG to look for EXIF behind the pixels; a second decoding after one that failed raises nothing
    # and leaves half a picture, so pixels come first wherever they are wanted
    if picture.format == "PNG" and data is not None and not any(mark in data for mark in _PNG_MARKS):
        return 1
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block is no reason to lose the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    # EXIF: 5..8 swap the axes; then rows and columns may run backwards
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]
