"""A sample of text alone, in which a test replaces what it is about."""

import torch
from torch import Tensor

from molmo_ds.batch import Sample, windows_of


def text_sample(ids: Tensor, side: int = 28, patch: int = 7) -> Sample:
    """The tokens `ids`, int64 [t], as a prefix of which nothing is learnt, without a picture.

    Args:
        side: pixels of a crop, if there were one.
        patch: pixels of a patch.
    """
    count = len(ids)
    grid = side // patch
    nothing = torch.zeros(count, dtype=torch.int32)
    return Sample(
        input_ids=ids,
        labels=torch.zeros_like(ids),
        loss_weights=torch.zeros(count),
        position_ids=torch.arange(count),
        branch_ids=nothing,
        images=torch.zeros(0, side, side, 3, dtype=torch.uint8),
        image_masks=torch.zeros(0, grid**2),
        windows=windows_of(0, grid, 2),
        image_positions=torch.zeros(0, dtype=torch.int64),
    )
