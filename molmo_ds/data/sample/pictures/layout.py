"""Places of a picture's crops and image tokens: a pure function of its width and height.

Shapes: R x C tiles, n = 1 + R * C crops (the global view is crop 0), P patches per crop, Q pooled patches per crop, m
windows of W patches. Sources: allenai/molmo at 793fa38, olmo/data/model_preprocessor.py; allenai/molmo2 at f3cb108,
olmo/preprocessing/multicrop_preprocessor.py.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from molmo_ds.architecture import IM_PATCH, MolmoConfig
from molmo_ds.data.sample.pictures.windows import joined, pool, single

# ids of the image tokens, counted from vocab_size, with IM_PATCH; 4 is another token in each family
IM_START = 0
IM_END = 1
IM_COL = 3
IMAGE = 4
IM_LOW = 5  # of HeMolmo
LOW_RES_IM_START = 4  # of Molmo2, as those below
FRAME_START = 7
FRAME_END = 8


@dataclass(frozen=True)
class Geometry:
    """The few numbers of a configuration that decide every layout; all in pixels or patches."""

    crop_mode: str  # overlap-and-resize-c2 | resize
    max_crops: int
    image_size: int  # side of a crop, pixels
    patch_size: int
    margins: tuple[int, int]  # patches
    pooling_size: int
    use_col_tokens: bool
    family: str = "molmo"  # molmo | molmo2 | hemolmo
    picks: int = 0  # windows of the high resolution that HeMolmo shows

    @classmethod
    def of(cls, config: MolmoConfig) -> "Geometry":
        """The geometry of a model; ValueError where its numbers do not fit together."""
        images = config.images
        vision = config.vision
        if images.crop_mode not in ("overlap-and-resize-c2", "resize"):
            raise ValueError(
                f"crop_mode '{images.crop_mode}' is unknown; set images.crop_mode to overlap-and-resize-c2 or resize."
            )
        if vision.image_size % vision.patch_size:
            raise ValueError(
                f"image_size {vision.image_size} is no multiple of patch_size {vision.patch_size}."
            )
        side = vision.image_size // vision.patch_size
        if images.crop_mode != "resize" and not 0 <= sum(images.overlap_margins) < side:
            raise ValueError(
                f"overlap_margins {images.overlap_margins} leave nothing of a crop of {side} x {side} patches;"
                " make them smaller."
            )
        if not 1 <= images.max_crops <= 36:
            raise ValueError(f"max_crops is {images.max_crops}; it must lie between 1 and 36.")
        picks = 0 if config.selection is None else config.selection.picks
        return cls(
            images.crop_mode, images.max_crops, vision.image_size, vision.patch_size, tuple(images.overlap_margins),
            config.connector.pooling_size, images.use_col_tokens, config.family, picks,
        )  # fmt: skip

    @property
    def side(self) -> int:
        """Patches along a crop's side."""
        return self.image_size // self.patch_size

    @property
    def pooled(self) -> int:
        """Pooled patches along a crop's side; an odd side is padded."""
        return -(-self.side // self.pooling_size)

    @property
    def window(self) -> int:
        """Pixels from one crop to the next."""
        return self.image_size - self.margin

    @property
    def margin(self) -> int:
        """Pixels that neighbouring crops share."""
        return sum(self.margins) * self.patch_size

    def canvas(self, tiling: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels of what is cut into these crops."""
        return tiling[0] * self.window + self.margin, tiling[1] * self.window + self.margin

    def tiling(self, height: int, width: int) -> tuple[int, int] | None:
        """Rows and columns of high-resolution crops for a picture; None where it is one resized crop."""
        if self.crop_mode == "resize":
            return None
        # Molmo was trained with sides below 1, Molmo2 was not
        least = 1 if self.family == "molmo2" else -self.margin
        rows = max(height - self.margin, least)
        columns = max(width - self.margin, least)
        return select_tiling(rows, columns, self.window, self.max_crops)

    def layout(self, height: int, width: int) -> "Layout":
        """The layout of a picture of this size in pixels."""
        if self.family == "molmo2":
            return _grid_layout(self, self.tiling(height, width))
        if self.family == "hemolmo":
            return _selected_layout(self, self.tiling(height, width))
        return _layout(self, self.tiling(height, width))


@dataclass(frozen=True)
class Layout:
    """The image tokens of one picture and the patches that they stand for. Shared: do not write into it.

    The k-th IM_PATCH among the tokens stands for the k-th window.
    """

    tiling: tuple[int, int] | None
    tokens: np.ndarray  # int64 [t], IM_START .. FRAME_END; add vocab_size for ids
    crops: int  # n, the global view included
    windows: np.ndarray  # int64 [m, W], crop * P + patch; -1 = a patch that is missing
    # int64 [n, Q], index into tokens; -1 = a margin that another crop shows; Molmo's released form
    positions: np.ndarray | None = None
    high: tuple[int, int] | None = None  # rows and columns of the windows that HeMolmo chooses from


@lru_cache(maxsize=64)
def _candidates(max_crops: int) -> np.ndarray:
    sides = range(1, max_crops + 1)
    pairs = [(rows, columns) for rows in sides for columns in sides if rows * columns <= max_crops]
    return np.array(sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[0])), np.int32)


@lru_cache(maxsize=65536)
def select_tiling(height: int, width: int, window: int, max_crops: int) -> tuple[int, int]:
    """Rows and columns that show a picture with the least enlargement, or else the least reduction.

    Sizes are what is left of the picture without the shared margin and may be 0 or negative; float32 throughout and
    infinite or negative scales are meant, since released models were trained so.
    """
    candidates = _candidates(max_crops)
    with np.errstate(divide="ignore"):
        scales = (
            (candidates * window).astype(np.float32) / np.array([height, width], np.float32)
        ).min(axis=1)
    if (scales < 1).all():
        best = scales.argmax()
    else:
        best = np.where(scales < 1, np.float32(10e9), scales).argmin()
    return int(candidates[best, 0]), int(candidates[best, 1])


def _axis(geometry: Geometry, tiles: int) -> list[tuple[int, int]]:
    """Per tile along an axis: first pooled patch that it shows, and how many. Inner margins belong to neighbours."""
    left, right = geometry.margins
    parts = []
    for tile in range(tiles):
        patches = geometry.side - (left if tile > 0 else 0) - (right if tile < tiles - 1 else 0)
        parts.append(
            (left // geometry.pooling_size if tile > 0 else 0, -(-patches // geometry.pooling_size))
        )
    return parts


def _block(rows: int, columns: int, use_col_tokens: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of one grid of patches, and the index of each patch [rows, columns] among them."""
    grid = np.full((rows, columns + use_col_tokens), IM_PATCH, np.int64)
    if use_col_tokens:
        grid[:, -1] = IM_COL
    where = 1 + np.arange(grid.size).reshape(grid.shape)[:, :columns]
    return np.concatenate([[IM_START], grid.ravel(), [IM_END]]), where


@lru_cache(maxsize=1024)
def _layout(geometry: Geometry, tiling: tuple[int, int] | None) -> Layout:
    side = geometry.pooled
    tokens, where = _block(side, side, geometry.use_col_tokens)
    if tiling is None:
        return _with_windows(geometry, None, tokens, where[None])
    row_parts = _axis(geometry, tiling[0])
    column_parts = _axis(geometry, tiling[1])
    rows = sum(n for _, n in row_parts)
    columns = sum(n for _, n in column_parts)
    high_tokens, high_where = _block(rows, columns, geometry.use_col_tokens)
    high_where = high_where + len(tokens)
    positions = np.full((1 + len(row_parts) * len(column_parts), side, side), -1, np.int64)
    positions[0] = where
    y = 0
    for i, (top, height) in enumerate(row_parts):
        x = 0
        for j, (left, width) in enumerate(column_parts):
            crop = positions[1 + i * len(column_parts) + j]
            crop[top : top + height, left : left + width] = high_where[
                y : y + height, x : x + width
            ]
            x += width
        y += height
    return _with_windows(geometry, tiling, np.concatenate([tokens, high_tokens]), positions)


def _with_windows(
    geometry: Geometry, tiling: tuple[int, int] | None, tokens: np.ndarray, positions: np.ndarray
) -> Layout:
    """A layout whose windows lie within single crops: positions [n, side, side] are the tokens of each crop's."""
    crops = len(positions)
    flat = positions.reshape(crops, -1)
    cut = pool(single(geometry.side), geometry.pooling_size, centred=False)
    cut = cut.reshape(-1, geometry.pooling_size**2)
    offsets = np.arange(crops)[:, None, None] * geometry.side**2
    windows = np.where(cut >= 0, cut + offsets, -1).reshape(-1, cut.shape[1])
    order = flat.ravel().argsort(kind="stable")
    used = order[flat.ravel()[order] >= 0]
    return Layout(tiling, tokens, crops, windows[used], flat)


@lru_cache(maxsize=1024)
def _grid_layout(geometry: Geometry, tiling: tuple[int, int] | None) -> Layout:
    """A layout of Molmo2: windows over the grid of all crops, after those of the global view."""
    low = pool(single(geometry.side), geometry.pooling_size)
    if tiling is None:
        tokens, _ = _block(*low.shape[:2], geometry.use_col_tokens)
        return Layout(None, tokens, 1, low.reshape(-1, low.shape[2]))
    high = pool(joined(tiling, geometry.side, geometry.margins), geometry.pooling_size)
    low_tokens, _ = _block(*low.shape[:2], False)
    low_tokens[0] = LOW_RES_IM_START
    high_tokens, _ = _block(*high.shape[:2], geometry.use_col_tokens)
    windows = np.concatenate([part.reshape(-1, part.shape[2]) for part in (low, high)])
    tokens = np.concatenate([low_tokens, high_tokens])
    return Layout(tiling, tokens, 1 + tiling[0] * tiling[1], windows)


@lru_cache(maxsize=1024)
def _selected_layout(geometry: Geometry, tiling: tuple[int, int]) -> Layout:
    """A layout of HeMolmo: the global view, and as many tokens of the other windows as are chosen.

    mattw-ai2/robo_mm_olmo_gantry at 6832f80, olmo/models/he_molmo/he_preprocessor.py; there a picture of fewer windows
    than picks shows windows that do not exist, as it does not in its videos.
    """
    low = pool(single(geometry.side), geometry.pooling_size)
    high = pool(joined(tiling, geometry.side, geometry.margins), geometry.pooling_size)
    rows, columns, size = high.shape
    low_tokens, _ = _block(*low.shape[:2], geometry.use_col_tokens)
    low_tokens[low_tokens == IM_PATCH] = IM_LOW
    shown = [IM_PATCH] * min(geometry.picks, rows * columns)
    ends = [IM_COL] * rows if geometry.use_col_tokens else []
    tokens = np.concatenate([low_tokens, [IM_START, *shown, *ends, IM_END]])
    windows = np.concatenate([low.reshape(-1, size), high.reshape(-1, size)])
    crops = 1 + tiling[0] * tiling[1]
    return Layout(tiling, tokens, crops, windows, high=(rows, columns))
