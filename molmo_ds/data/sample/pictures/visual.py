"""The tokens of a sample's pictures, or of its video, in a text, and the windows of patches that they stand for.

Molmo2 numbers several pictures and writes the time before each frame (allenai/molmo2 at f3cb108,
olmo/preprocessing/multicrop_preprocessor.py and video_preprocessor.py).
"""

from dataclasses import dataclass

import numpy as np

from molmo_ds.architecture import VideoConfig
from molmo_ds.data.sample.pictures.layout import FRAME_END, FRAME_START, IM_PATCH, Layout
from molmo_ds.data.sample.times import stamp
from molmo_ds.data.tokens import Words


@dataclass(frozen=True)
class Block:
    """The tokens of one picture, or of a video. The k-th <im_patch> among them stands for the k-th window."""

    ids: list[int]
    windows: np.ndarray  # int64 [m, W], crop * P + patch of the block's own crops; -1 = missing
    crops: int
    layout: Layout | None = None  # of a picture


def picture_blocks(tokenizer: Words, layouts: list[Layout], numbered: bool) -> list[Block]:
    """A block for each picture; `numbered` puts `Image 1` before the first of several, and so on."""
    blocks = []
    for number, layout in enumerate(layouts, start=1):
        named = tokenizer.encode(f"Image {number}") if numbered and len(layouts) > 1 else []
        ids = (layout.tokens + tokenizer.vocab_size).tolist()
        blocks.append(Block(named + ids, layout.windows, layout.crops, layout))
    return blocks


def frames_block(tokenizer: Words, frame: Layout, count: int, patches: int) -> Block:
    """Molmo's block of a video: its frames as pictures, one after the other.

    Args:
        frame: the layout of each of them.
        patches: of a crop.
    """
    ids = (frame.tokens + tokenizer.vocab_size).tolist() * count
    return Block(ids, _repeated(frame.windows, count, patches), count)


def video_block(
    tokenizer: Words,
    config: VideoConfig,
    times: list[float],
    windows: np.ndarray,
    patches: int,
    subtitles: str | None = None,
) -> Block:
    """Molmo2's block of a video: before each frame its time, after the last one the subtitles.

    Args:
        windows: int64 [m, W], those of one frame.
        patches: of a frame.
    """
    first = tokenizer.vocab_size
    frame = [first + IM_PATCH] * len(windows)
    opened = [first + FRAME_START]
    closed = [first + FRAME_END]
    ids = [] if config.per_frame_special_token else list(opened)
    for number, time in enumerate(times):
        ids += tokenizer.encode(f"{' ' if number else ''}{stamp(time)} ")
        ids += opened + frame + closed if config.per_frame_special_token else frame
    ids += [] if config.per_frame_special_token else closed
    if subtitles is not None:
        ids += tokenizer.encode(subtitles)
    count = len(times)
    return Block(ids, _repeated(windows, count, patches), count)


def joined_windows(parts: list[np.ndarray], crops: list[int], patches: int) -> np.ndarray:
    """The windows of several blocks in one numbering of patches, padded to the widest."""
    if len(parts) == 1:
        return parts[0].copy()  # layouts are kept for other pictures
    width = max((part.shape[1] for part in parts), default=0)
    out = [np.empty((0, width), np.int64)]
    before = 0
    for part, count in zip(parts, crops):
        lacking = width - part.shape[1]
        wide = np.pad(part, [(0, 0), (0, lacking)], constant_values=-1)
        out.append(np.where(wide >= 0, wide + before * patches, -1))
        before += count
    return np.concatenate(out)


def _repeated(windows: np.ndarray, count: int, patches: int) -> np.ndarray:
    """The windows [m, W] of each of `count` frames, in one numbering of patches: [count * m, W]."""
    first = patches * np.arange(count)[:, None, None]
    numbered = np.where(windows >= 0, windows + first, -1)
    return numbered.reshape(-1, windows.shape[1])
