"""The pictures of a batch dealt out to ranks that each run the vision tower and the connector on a share.

A window may join patches of several crops, so crops that windows join stay together. Every rank gets as many crops and
windows as the fullest one, blank ones included, because gathering needs equal shapes.

Shapes: N crops, P patches of a crop, M windows of W patches, S ranks.
"""

import torch
from torch import Tensor

from molmo_ds.batch import KINDS, MISSING, PER_CROP, PER_WINDOW, Batch, Carry


class Deal:
    """The pictures of a batch, dealt to S = `size` ranks."""

    def __init__(self, x: Batch | Carry, size: int) -> None:
        self.x = x
        crops, self.patches = x.image_masks.shape
        owner, of_window = _owners(crops, self.patches, x.windows, size)
        self.crops = [(owner == rank).nonzero()[:, 0] for rank in range(size)]
        self.rows = [(of_window == rank).nonzero()[:, 0] for rank in range(size)]
        self.most_crops = max(1, *(len(mine) for mine in self.crops))
        self.most_rows = max(1, *(len(mine) for mine in self.rows))

    def share(self, rank: int) -> dict[str, Tensor]:
        """A rank's crops [n, ...] and windows [m, ...] by name; every share is padded to the same shape.

        `windows` index the share's own n * P patches, `image_positions` still the tokens of the whole batch.
        """
        mine = self.crops[rank]
        crops = {name: getattr(self.x, name)[mine] for name in PER_CROP}
        rows = {name: getattr(self.x, name)[self.rows[rank]] for name in PER_WINDOW}
        place = mine.new_zeros(
            len(self.x.image_masks)
        )  # of each crop of the batch among the rank's
        place[mine] = torch.arange(len(mine), device=place.device)
        windows = rows["windows"]
        local = place[windows.clamp(min=0) // self.patches] * self.patches + windows % self.patches
        rows["windows"] = torch.where(windows >= 0, local, MISSING)
        dealt = {name: _padded(x, self.most_crops, name) for name, x in crops.items()}
        return dealt | {name: _padded(x, self.most_rows, name) for name, x in rows.items()}

    @property
    def positions(self) -> Tensor:
        """int64 [S * m], the positions of all shares, rank by rank."""
        parts = [self.x.image_positions[mine] for mine in self.rows]
        return torch.cat([_padded(part, self.most_rows, "image_positions") for part in parts])


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


def _padded(x: Tensor, count: int, name: str) -> Tensor:
    more = x.new_full((count - len(x), *x.shape[1:]), KINDS[name].padding)
    return torch.cat([x, more])
