"""A picture in memory to upright uint8 RGB: the one place that knows how every mode and type becomes pixels."""

from typing import Any

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112  # the EXIF tag
_CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, RGB, RGB and alpha


def to_pixels(picture: Any) -> np.ndarray:
    """uint8 [height, width, 3] of a PIL picture, an array or a tensor.

    PIL: the first frame, EXIF orientation applied; alpha is dropped without compositing; palettes, grey, 1-bit and CMYK
    become RGB as Pillow converts them; 16-bit grey keeps its high byte, and so does grey of 32 bits (mode I) unless its
    values end at 255, which then stay as they are. Arrays and tensors: [height, width] or [height, width, channels]
    with 1 to 4 channels, or a tensor [channels, height, width]; uint8, uint16 (the high byte is kept), bool, other
    integers from 0 to 255, and floats from 0 to 1 or, if one is above 1, from 0 to 255.

    Raises ValueError for anything else.
    """
    if isinstance(picture, Image.Image):
        if 0 in picture.size:
            raise ValueError(f"A picture of {picture.width} x {picture.height} pixels is empty.")
        pixels = colours(picture)
        return np.ascontiguousarray(turn(pixels, orientation(picture)))
    # here, so that tables of tasks and data sets are printed without torch
    from torch import Tensor

    if isinstance(picture, Tensor):
        tensor = picture.detach().cpu()
        array = (
            tensor
            if tensor.dtype.itemsize > 2 or not tensor.is_floating_point()
            else tensor.float()
        ).numpy()
        return np.ascontiguousarray(_bytes(_three(_last(array))))
    if isinstance(picture, np.ndarray):
        return np.ascontiguousarray(_bytes(_three(picture)))
    raise ValueError(
        f"A picture is a PIL picture, an array or a tensor, not {type(picture).__name__}."
    )


def colours(picture: Image.Image) -> np.ndarray:
    """uint8 [height, width, 3] of a PIL picture as it is stored; ValueError for a mode that has no colours."""
    mode = picture.mode
    if mode.startswith("I"):  # 16-bit grey, by whatever name the format's reader gives it
        values = np.asarray(picture).astype(np.int64)
        low = values.min()
        high = values.max()
        if low < 0 or high > 0xFFFF:
            raise ValueError(
                f"A picture of mode {mode} holds values from {low} to {high}; grey has at most 16 bits."
            )
        if mode == "I" and high <= 0xFF:  # what Pillow's convert("I") makes of 8-bit grey
            return _three(values.astype(np.uint8))
        return _three((values >> 8).astype(np.uint8))
    if mode == "F":
        return _bytes(_three(np.asarray(picture)))
    if mode in ("La", "RGBa"):  # premultiplied
        picture = picture.convert("LA" if mode == "La" else "RGBA")
    try:
        return np.asarray(picture.convert("RGB"))
    except ValueError:
        raise ValueError(f"A picture of mode {mode} cannot be converted to RGB.") from None


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none."""
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block is no reason to lose the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [height, width, ...] upright; a view."""
    # EXIF: 5..8 swap the axes; then rows and columns may run backwards
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]


def _last(array: np.ndarray) -> np.ndarray:
    """A tensor's channels come last."""
    if (
        array.ndim == 3
        and array.shape[0] in _CHANNELS
        and (array.shape[2] not in _CHANNELS or array.shape[0] == 3)
    ):
        return array.transpose(1, 2, 0)
    return array


def _three(array: np.ndarray) -> np.ndarray:
    """[height, width, 3] of the same type."""
    grey = array[..., None] if array.ndim == 2 else array
    if grey.ndim != 3 or grey.shape[2] not in _CHANNELS or 0 in grey.shape:
        raise ValueError(
            f"A picture is [height, width] or [height, width, 1 to 4 channels], not {list(array.shape)}."
        )
    if grey.shape[2] < 3:
        return np.repeat(grey[..., :1], 3, axis=2)
    return grey[..., :3]


def _bytes(array: np.ndarray) -> np.ndarray:
    """uint8 of any type of numbers."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf":
        raise ValueError(f"A picture holds numbers, not {array.dtype}.")
    low = array.min()
    high = array.max()
    if not (low >= 0 and high <= 255):  # so that NaN is refused as well
        raise ValueError(
            f"A picture of {array.dtype} holds values from {low} to {high}; they run from 0 to 1 or to 255."
        )
    if array.dtype.kind == "f":
        return np.rint(array * 255 if high <= 1 else array).astype(np.uint8)
    return array.astype(np.uint8)
