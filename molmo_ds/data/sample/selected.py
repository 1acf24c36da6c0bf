"""HeMolmo's samples: what the scorer needs to choose windows, and the positions of a picture's tokens.

Shapes: t tokens, l windows of the low resolution, h of the high one, k picks. Source: mattw-ai2/robo_mm_olmo_gantry at
6832f80, olmo/models/he_molmo/he_preprocessor.py.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from molmo_ds.architecture import IM_PATCH
from molmo_ds.batch import MISSING, Sample, SelectionSample
from molmo_ds.data.sample.pictures.layout import IM_COL, IM_END, IM_LOW, Layout


def selected(
    sample: Sample, vocab_size: int, candidate_places: Tensor, low_to_high: Tensor
) -> SelectionSample:
    """A sample whose <im_low> tokens show the low windows, and whose <im_patch> tokens show its picks.

    <im_low> has the embedding of <im_patch>, so its id becomes that one's. Raises ValueError for a sample that has
    fewer windows than picks.
    """
    special = sample.input_ids - vocab_size
    low = (special == IM_LOW).nonzero()[:, 0]
    picked = (special == IM_PATCH).nonzero()[:, 0]
    high = len(candidate_places)
    if len(picked) > high:
        raise ValueError(f"A picture of {high} windows cannot show {len(picked)}; pick fewer.")
    ends = (special == IM_END).nonzero()[:, 0]
    end = int(ends[0]) if len(ends) else 0
    fields = vars(sample) | {
        "input_ids": torch.where(special == IM_LOW, vocab_size + IM_PATCH, sample.input_ids),
        "image_positions": torch.cat([low, torch.full((high,), MISSING)]),
    }
    return SelectionSample(
        **fields,
        low_tokens=low,
        picked_tokens=picked,
        candidate_places=candidate_places,
        low_to_high=low_to_high,
        query_token=max(0, end - 1),
        low_length=end + 1,
    )


def token_places(layout: Layout) -> np.ndarray:
    """int64 [t], the position of each token of a picture after that of its first.

    All picks have one position, to which the network adds the place of the window that it puts there; the tokens after
    them lie as if all windows were shown.
    """
    rows, columns = layout.high
    low = int((layout.tokens == IM_END).argmax()) + 1
    picks = int((layout.tokens == IM_PATCH).sum())
    ends = np.empty(0, np.int64)
    last = picks + 1
    if _has_columns(layout):
        ends = np.arange(1, rows + 1) * (columns + 1)
        last = rows * columns + columns + 1
    high = np.concatenate([[0], np.ones(picks, np.int64), ends, [last]])
    return np.concatenate([np.arange(low), low + high])


def window_places(layout: Layout) -> Tensor:
    """int64 [h], what a high window adds to the position of the token that shows it."""
    rows, columns = layout.high
    step = columns + 1 if _has_columns(layout) else columns
    places = torch.arange(columns)[None] + torch.arange(rows)[:, None] * step
    return places.flatten()


def shares(low: int, high: tuple[int, int]) -> Tensor:
    """float32 [4 * low * low, h]: scores of a 2 x 2 grid in each of low x low windows, spread over the high windows.

    Bilinear, each column adds up to 1. Rows are ordered (row, column, row inside, column inside).
    """
    side = 2 * low
    grid = torch.eye(side * side).view(1, side * side, side, side)
    spread = interpolate(grid, high, mode="bilinear", antialias=False)[0]
    spread = spread.view(low, 2, low, 2, *high).transpose(1, 2)
    return spread.reshape(side * side, high[0] * high[1])


def moved(positions: Tensor, start: int, layout: Layout) -> Tensor:
    """Positions int64 [t] of a sample's tokens with those of its picture, which begins at `start`."""
    count = len(layout.tokens)
    places = torch.from_numpy(token_places(layout))
    out = positions.clone()
    out[start : start + count] = positions[start] + places
    out[start + count :] += int(places.max()) + 1 - count
    return out


def _has_columns(layout: Layout) -> bool:
    return bool((layout.tokens == IM_COL).any())
