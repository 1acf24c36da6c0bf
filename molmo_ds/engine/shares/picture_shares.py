"""The pictures of a batch dealt out to ranks that each run the vision tower and the connector on a share.

A window may join patches of several crops, so crops that windows join stay together. Every rank gets as many crops and
windows as the fullest one, blank ones included, because gathering needs equal shapes.

Shapes: N crops, P patches of a crop, M windows of W patches, S ranks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from molmo_ds.batch import MISSING


@dataclass(frozen=True)
class Share:
    """A rank's crops and windows; every share is padded to the same shape."""

    images: Tensor  # [n, ...]
    image_masks: Tensor  # float32 [n, P]
    windows: Tensor  # int64 [m, W], into these n * P patches
    image_positions: Tensor  # int64 [m], tokens of the batch, -1 = nowhere


class Deal:
    """The pictures of a batch, dealt to S = `size` ranks.

    Args:
        images, masks, windows, positions: [N, ...], [N, P], [M, W] and [M], as in a Batch.
    """

    def __init__(
        self, images: Tensor, masks: Tensor, windows: Tensor, positions: Tensor, size: int
    ) -> None:
        self.images = images
        self.masks = masks
        self.windows = windows
        self.patches = masks.shape[1]
        owner, of_window = _owners(len(masks), self.patches, windows, size)
        self.crops = [(owner == rank).nonzero()[:, 0] for rank in range(size)]
        self.rows = [(of_window == rank).nonzero()[:, 0] for rank in range(size)]
        self.most_crops = max(1, *(len(mine) for mine in self.crops))
        most_rows = max(1, *(len(mine) for mine in self.rows))
        self.positions_of = [_padded(positions[mine], most_rows, MISSING) for mine in self.rows]
        self.most_rows = most_rows

    def share(self, rank: int) -> Share:
        """What one of the ranks gets."""
        mine = self.crops[rank]
        place = mine.new_zeros(len(self.masks))  # of each crop of the batch among the rank's
        place[mine] = torch.arange(len(mine), device=place.device)
        windows = self.windows[self.rows[rank]]
        crop = windows.clamp(min=0) // self.patches
        local = place[crop] * self.patches + windows % self.patches
        return Share(
            _padded(self.images[mine], self.most_crops, 0),
            _padded(self.masks[mine], self.most_crops, 1),
            _padded(torch.where(windows >= 0, local, MISSING), self.most_rows, MISSING),
            self.positions_of[rank],
        )

    @property
    def positions(self) -> Tensor:
        """int64 [S * m], the positions of all shares, rank by rank."""
        return torch.cat(self.positions_of)


def _owners(crops: int, patches: int, windows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The rank of each crop, int64 [N], and of each window, int64 [M]; the largest pictures are dealt first."""
    device = windows.device
    there = windows >= 0
    crop = windows.clamp(min=0) // patches
    last = torch.where(there, crop, -1).amax(1)
    first = torch.where(there, crop, crops).amin(1)
    first = torch.where(last >= 0, first, 0)
    # neighbours are joined where more windows have begun than ended
    joins = torch.zeros(crops + 1, dtype=torch.int64, device=device)
    spans = last > first
    joins.index_add_(0, first[spans] + 1, torch.ones_like(first[spans]))
    joins.index_add_(0, last[spans] + 1, -torch.ones_like(last[spans]))
    begins = joins.cumsum(0)[:crops] == 0
    picture = begins.long().cumsum(0) - 1
    sizes = torch.bincount(picture).tolist() if crops else []
    held = [0] * size
    rank_of = [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        rank = held.index(min(held))
        rank_of[number] = rank
        held[rank] += sizes[number]
    owner = torch.tensor(rank_of, dtype=torch.int64, device=device)[picture]
    if not crops:
        return owner, torch.zeros_like(first)
    return owner, owner[first.clamp(max=crops - 1)]


def _padded(x: Tensor, count: int, value: int) -> Tensor:
    more = x.new_full((count - len(x), *x.shape[1:]), value)
    return torch.cat([x, more])
