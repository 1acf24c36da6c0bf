"""Pictures to crops: tiling, resizing and padding as the towers expect them, in bytes or in exact float32.

Shapes: n crops of S x S pixels (crop 0 is the global view), P patches per crop, p patch side.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from molmo_ds.architecture import PIXEL_STATISTICS, MolmoConfig
from molmo_ds.data.decode import BadSample, load_image, read_size, upright_size
from molmo_ds.data.pixels import to_pixels
from molmo_ds.data.sample.pictures.layout import Geometry, Layout
from molmo_ds.data.sample.pictures.windows import pool, single

__all__ = [
    "BadSample",
    "Crops",
    "ImageProcessor",
    "load_image",
    "read_size",
    "to_pixels",
    "upright_size",
]

_INTERPOLATION = {  # by images.resize: mode, antialias
    "clip": ("bilinear", True),
    "siglip": ("bilinear", False),
    "dinov2": ("bicubic", True),
    "metaclip": ("bicubic", True),
}


@dataclass(frozen=True)
class Crops:
    """One picture, ready for the tower."""

    images: Tensor  # uint8 [n, S, S, 3], or float32 [n, P, p * p * 3] in the exact mode
    masks: Tensor  # float32 [n, P], share of real pixels per patch
    layout: Layout


class ImageProcessor:
    """Pictures to crops for one model.

    `images.resize` chooses interpolation: `clip` keeps the aspect ratio (antialiased bilinear) and pads; `siglip`
    (bilinear without antialias), `dinov2` and `metaclip` (antialiased bicubic) squash. In the exact mode everything is
    float32 as in the reference, normalisation included; otherwise pictures stay bytes, within 1.01/255 of it, and
    `ops.crops.normalise_patches` normalises on the device.
    """

    def __init__(self, config: MolmoConfig):
        if config.images.resize not in _INTERPOLATION:
            raise ValueError(
                f"images.resize '{config.images.resize}' is unknown; choose of {', '.join(_INTERPOLATION)}."
            )
        if not 0 <= config.images.pad_value <= 1:
            raise ValueError(
                f"images.pad_value is {config.images.pad_value}; it must lie between 0 and 1."
            )
        self.config = config.images
        self.geometry = Geometry.of(config)
        self.frame_geometry = dataclasses.replace(self.geometry, crop_mode="resize")
        most = config.images.high_res_max_crops
        self.high_geometry = dataclasses.replace(self.geometry, max_crops=most)
        most = config.images.max_crops
        most = min(most, config.images.several_max_crops or most)
        self.several_geometry = dataclasses.replace(self.geometry, max_crops=most)
        pooling = config.video.pooling_size or self.geometry.pooling_size
        windows = pool(single(self.geometry.side), pooling)
        self.frame_windows = windows.reshape(-1, pooling**2)  # int64 [m, W] of Molmo2
        self.no_windows = np.empty((0, self.geometry.pooling_size**2), np.int64)
        self.patches = self.geometry.side**2
        size = self.geometry.image_size
        columns = self.geometry.patch_size**2 * 3
        self.crop_shape = (self.patches, columns) if self.config.exact else (size, size, 3)
        self.dtype = torch.float32 if self.config.exact else torch.uint8
        self._mean, self._std = (
            torch.tensor(values) for values in PIXEL_STATISTICS[self.config.resize]
        )

    def layout(
        self,
        width: int,
        height: int,
        frame: bool = False,
        high: bool = False,
        several: bool = False,
    ) -> Layout:
        """Crops and tokens of a picture that is not decoded yet.

        Args:
            frame: of a video, which is one resized crop.
            high: up to images.high_res_max_crops.
            several: one of several pictures, up to images.several_max_crops.

        Raises BadSample for a picture of which resizing would leave nothing, as 1 x 1000 pixels with `clip`.
        """
        geometry = self.geometry
        if frame:
            geometry = self.frame_geometry
        elif high:
            geometry = self.high_geometry
        elif several:
            geometry = self.several_geometry
        layout = geometry.layout(height, width)
        for tiling in {(1, 1), layout.tiling or (1, 1)} if self.config.resize == "clip" else ():
            size = self.geometry.canvas(tiling)
            if 0 in fit(height, width, *size):
                raise BadSample(
                    f"{width} x {height} pixels are too narrow to be resized to {size[1]} x {size[0]}."
                )
        return layout

    def count_tokens(self, width: int, height: int) -> int:
        """Image tokens of a picture of this size in pixels."""
        return len(self.layout(width, height).tokens)

    def __call__(
        self,
        picture: np.ndarray | Image.Image,
        frame: bool = False,
        high: bool = False,
        several: bool = False,
    ) -> Crops:
        """uint8 [height, width, 3] (or a PIL picture) -> Crops; `frame`, `high` and `several` as of `layout`."""
        if isinstance(picture, Image.Image):
            picture = to_pixels(picture)
        if (
            picture.dtype != np.uint8
            or picture.ndim != 3
            or picture.shape[2] != 3
            or 0 in picture.shape
        ):
            raise ValueError(
                f"A picture is uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}."
            )
        pixels = torch.from_numpy(
            picture if picture.flags.c_contiguous and picture.flags.writeable else picture.copy()
        )
        geometry = self.geometry
        layout = self.layout(pixels.shape[1], pixels.shape[0], frame, high, several)
        crops = torch.empty(
            (layout.crops, geometry.image_size, geometry.image_size, 3),
            dtype=torch.float32 if self.config.exact else torch.uint8,
        )
        masks = torch.empty(layout.crops, self.patches)
        self._fill(pixels, crops[:1], masks[:1], (1, 1))
        if layout.tiling is not None:
            self._fill(pixels, crops[1:], masks[1:], layout.tiling)
            # released weights saw every mask one crop early, and -1 at the last
            if self.config.legacy_image_mask and geometry.family == "molmo":
                masks = torch.cat([masks[1:], torch.full((1, self.patches), -1.0)])
        return Crops(self._normalise(crops) if self.config.exact else crops, masks, layout)

    def _fill(self, pixels: Tensor, crops: Tensor, masks: Tensor, tiling: tuple[int, int]) -> None:
        """Resize once for `tiling` and cut the overlapping crops out, row by row."""
        geometry = self.geometry
        size = self.geometry.image_size
        canvas = (
            crops[0]
            if tiling == (1, 1)
            else torch.empty((*geometry.canvas(tiling), 3), dtype=crops.dtype)
        )
        top, left, height, width = self._resize(pixels, canvas)
        if tiling != (1, 1):
            # [R, C, 3, S, S]
            tiles = canvas.unfold(0, size, geometry.window).unfold(1, size, geometry.window)
            crops.view(*tiling, size, size, 3).copy_(tiles.permute(0, 1, 3, 4, 2))
        rows = self._cover(tiling[0], top, height)
        columns = self._cover(tiling[1], left, width)
        masks.copy_(
            torch.from_numpy(rows[:, None, :, None] * columns[None, :, None, :]).view(masks.shape)
        )

    def _cover(self, tiles: int, start: int, count: int) -> np.ndarray:
        """Share of each patch that [start, start + count) covers along an axis: float32 [tiles, side]."""
        geometry = self.geometry
        firsts = (np.arange(tiles) * geometry.window)[:, None] + np.arange(
            geometry.side
        ) * geometry.patch_size
        real = np.minimum(firsts + geometry.patch_size, start + count) - np.maximum(firsts, start)
        return (real.clip(0) / geometry.patch_size).astype(np.float32)

    def _resize(self, pixels: Tensor, canvas: Tensor) -> tuple[int, int, int, int]:
        """Fill a canvas [height, width, 3] and say which part of it is real: (top, left, height, width)."""
        height, width = canvas.shape[:2]
        h, w = (
            fit(pixels.shape[0], pixels.shape[1], height, width)
            if self.config.resize == "clip"
            else (height, width)
        )
        top = (height - h) // 2
        left = (width - w) // 2
        pad = self.config.pad_value if self.config.exact else round(self.config.pad_value * 255)
        canvas[:top] = pad
        canvas[top + h :] = pad
        canvas[:, :left] = pad
        canvas[:, left + w :] = pad
        canvas[top : top + h, left : left + w] = self.interpolate(pixels, h, w)
        return top, left, h, w

    def interpolate(self, pixels: Tensor, height: int, width: int) -> Tensor:
        """uint8 [h, w, 3] -> [height, width, 3], bytes or (in the exact mode) float32 in 0..1."""
        mode, antialias = _INTERPOLATION[self.config.resize]
        # Molmo2 was trained on bytes that were rounded once: the fast path for bytes is one off
        if not self.config.exact and mode == "bilinear" and self.geometry.family == "molmo":
            out = interpolate(_interleaved(pixels), (height, width), mode=mode, antialias=antialias)
            return out[0].permute(1, 2, 0)
        # equal to the last bit; with antialias planes are up to 1.8 times as fast, but wrong in a column
        planes = antialias and width > 1
        image = pixels.permute(2, 0, 1)[None].float() if planes else _interleaved(pixels.float())
        if self.config.resize == "clip":
            out = interpolate(
                image.div_(255), (height, width), mode=mode, antialias=antialias
            ).clamp_(0, 1)
        # the reference rounds to bytes here; bicubic in bytes would also clip between its passes, 5/255 off
        else:
            out = (
                interpolate(image, (height, width), mode=mode, antialias=antialias)
                .round()
                .clamp(0, 255)
            )
            out = out / 255 if self.config.exact else out.to(torch.uint8)
        return out[0].permute(1, 2, 0)

    def _normalise(self, crops: Tensor) -> Tensor:
        geometry = self.geometry
        n = len(crops)
        crops.sub_(self._mean).div_(self._std)
        patches = crops.view(
            n, geometry.side, geometry.patch_size, geometry.side, geometry.patch_size, 3
        )
        return patches.transpose(2, 3).reshape(n, *self.crop_shape)


def _interleaved(pixels: Tensor) -> Tensor:
    """A view [1, 3, h, w] of [h, w, 3], whose strides, and no others, take torch's fast path.

    Where the result is one pixel wide it is the only right one: torch 2.13's antialias on planes, which the reference
    uses, then gives every row the colours of the first.
    """
    rows, columns = pixels.shape[:2]
    strides = (rows * columns * 3, 1, columns * 3, 3)
    return pixels.as_strided((1, 3, rows, columns), strides)


def fit(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """Largest (height, width) of this aspect ratio inside the target; float32 and truncated, as the reference."""
    rows = np.float32(height)
    columns = np.float32(width)
    scale = min(np.float32(target_height) / rows, np.float32(target_width) / columns)
    return int(rows * scale), int(columns * scale)
