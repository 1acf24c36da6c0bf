"""Rows and batches of HeMolmo's samples, one a row, and of every other family's.

Shapes: L windows of the low resolution, H of the high one and K picks of each row, at most. Source:
mattw-ai2/robo_mm_olmo_gantry at a1b4426, olmo/models/he_molmo/he_collator.py.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.batch import MISSING, Batch, Sample, SelectionBatch, SelectionSample, shifted
from molmo_ds.data.order import packing


def row(pack: list[Sample], sequence_length: int) -> Batch:
    """One sequence, as `packing.row`; a SelectionBatch of HeMolmo's one sample."""
    made = packing.row(pack, sequence_length)
    if not isinstance(pack[0], SelectionSample):
        return made
    [sample] = pack
    high = len(sample.candidate_places)
    return SelectionBatch(
        **vars(made),
        low_tokens=sample.low_tokens[None],
        candidates=torch.arange(high)[None] + len(sample.low_tokens),
        candidate_places=sample.candidate_places[None],
        picked_tokens=sample.picked_tokens[None],
        low_to_high=sample.low_to_high[None],
        query_tokens=torch.tensor([sample.query_token]),
        low_length=torch.tensor(sample.low_length),
    )


def merge(rows: list[Batch]) -> Batch:
    """Rows under each other, as `packing.merge`; those of HeMolmo as a SelectionBatch.

    Each of L, H and K is at least 1, as if a row of text had one that is not there, so that the scorer runs on every
    rank; H is at least K.
    """
    joined = packing.merge(rows)
    if not isinstance(rows[0], SelectionBatch):
        return joined
    low = max(1, *(row.low_tokens.shape[1] for row in rows))
    picks = max(1, *(row.picked_tokens.shape[1] for row in rows))
    high = max(picks, *(row.candidates.shape[1] for row in rows))
    before = 0
    candidates = []
    for row in rows:
        candidates.append(shifted(row.candidates, before))
        before += len(row.windows)
    shares = [_shares(row.low_to_high, low, high) for row in rows]
    lengths = [row.low_length for row in rows]
    return SelectionBatch(
        **vars(joined),
        low_tokens=_under([row.low_tokens for row in rows], low),
        candidates=_under(candidates, high),
        candidate_places=_under([row.candidate_places for row in rows], high, 0),
        picked_tokens=_under([row.picked_tokens for row in rows], picks),
        low_to_high=torch.cat(shares),
        query_tokens=torch.cat([row.query_tokens for row in rows]),
        low_length=torch.stack(lengths).max(),
    )


def collate_selected(samples: list[SelectionSample]) -> SelectionBatch:
    """One row a sample, padded to the longest."""
    return merge([row([sample], len(sample.input_ids)) for sample in samples])


def _under(rows: list[Tensor], count: int, value: int = MISSING) -> Tensor:
    """Tensors [1, n] under each other, each padded to `count`."""
    wide = []
    for row in rows:
        lacking = count - row.shape[1]
        wide.append(F.pad(row, (0, lacking), value=value))
    return torch.cat(wide)


def _shares(shares: Tensor, low: int, high: int) -> Tensor:
    """Shares [1, 4 * l, h] padded to [1, 4 * low, high]."""
    _, scores, windows = shares.shape
    return F.pad(shares, (0, high - windows, 0, 4 * low - scores))
