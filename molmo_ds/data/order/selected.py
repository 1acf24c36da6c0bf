"""Collation of HeMolmo's samples: one a row, with what the scorer needs to choose windows.

Shapes: t tokens, n crops, P patches per crop, m windows of W patches, of which l are of the low resolution and h of the
high one. Source: mattw-ai2/robo_mm_olmo_gantry at a1b4426, olmo/models/he_molmo/he_collator.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.batch import MISSING, Sample, SelectionBatch
from molmo_ds.data.order.packing import merge, row

IM_END, IM_PATCH, IM_LOW = 1, 2, 5  # special tokens, counted from vocab_size


@dataclass(frozen=True)
class SelectionSample(Sample):
    """A sample whose windows are l of the low resolution, each at its <im_low>, then h of the high one, at none."""

    low_windows: int  # l
    candidate_places: Tensor  # int64 [h], row * (columns + 1) + column of each high window
    low_to_high: (
        Tensor  # float32 [4 * l, h], the share of each of four scores in that of a high window
    )


def collate_selected(samples: list[SelectionSample], vocab_size: int) -> SelectionBatch:
    """Rows padded to the longest; the <im_patch> tokens of a sample are its picks, best first.

    <im_low> has the embedding of <im_patch>, so its id becomes that one's. Raises ValueError for a sample that has
    fewer windows than picks.
    """
    joined = merge([row([sample], len(sample.input_ids)) for sample in samples])
    ids = joined.input_ids
    special = ids - vocab_size
    # a row of text has one of each that is not there, so that the scorer runs on every rank
    low_count = max(1, *(sample.low_windows for sample in samples))
    high_count = max(1, *(len(sample.candidate_places) for sample in samples))
    picks = [(special[i] == IM_PATCH).nonzero()[:, 0] for i in range(len(samples))]
    most = max(1, *(len(mine) for mine in picks))
    first = 0
    candidates = []
    shares = []
    for sample, mine in zip(samples, picks):
        high = len(sample.candidate_places)
        if len(mine) > high:
            raise ValueError(f"A picture of {high} windows cannot show {len(mine)}; pick fewer.")
        index = torch.arange(high) + first + sample.low_windows
        candidates.append(_padded(index, max(high_count, most)))
        lacking = (0, max(high_count, most) - high, 0, 4 * low_count - len(sample.low_to_high))
        shares.append(F.pad(sample.low_to_high, lacking))
        first += len(sample.windows)
    ends = special == IM_END
    end = torch.where(ends.any(1), ends.int().argmax(1), 0)
    lows = [(special[i] == IM_LOW).nonzero()[:, 0] for i in range(len(samples))]
    places = [
        F.pad(s.candidate_places, (0, max(high_count, most) - len(s.candidate_places)))
        for s in samples
    ]
    fields = vars(joined) | {
        "input_ids": torch.where(special == IM_LOW, vocab_size + IM_PATCH, ids)
    }
    return SelectionBatch(
        **fields,
        low_tokens=torch.stack([_padded(mine, low_count) for mine in lows]),
        candidates=torch.stack(candidates),
        candidate_places=torch.stack(places),
        picked_tokens=torch.stack([_padded(mine, most) for mine in picks]),
        low_to_high=torch.stack(shares),
        query_tokens=(end - 1).clamp(min=0),
        low_length=end.max() + 1,
    )


def _padded(index: Tensor, count: int) -> Tensor:
    return F.pad(index, (0, count - len(index)), value=MISSING)
