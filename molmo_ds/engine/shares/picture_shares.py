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
        of_crop, of_window = _owners(crops, self.patches, x.windows, size)
        self.crops = _by_owner(of_crop, size)
        self.rows = _by_owner(of_window, size)
        self.most_crops = max(1, *map(len, self.crops))
        self.most_rows = max(1, *map(len, self.rows))

    def share(self, rank: int) -> dict[str, Tensor]:
        """A rank's crops [n, ...] and windows [m, ...] by name; every share is padded to the same shape.

        `windows` index the share's own n * P patches, `image_positions` still the tokens of the whole batch.
        """
        dealt = {}
        for name in PER_CROP:
            mine = getattr(self.x, name)[self.crops[rank]]
            dealt[name] = _padded(mine, self.most_crops, name)
        for name in PER_WINDOW:
            mine = getattr(self.x, name)[self.rows[rank]]
            if name == "windows":
                mine = self._local(mine, self.crops[rank])
            dealt[name] = _padded(mine, self.most_rows, name)
        return dealt

    @property
    def positions(self) -> Tensor:
        """int64 [S * m], the positions of all shares, rank by rank."""
        parts = []
        for rows in self.rows:
            mine = self.x.image_positions[rows]
            parts.append(_padded(mine, self.most_rows, "image_positions"))
        return torch.cat(parts)

    def _local(self, windows: Tensor, crops: Tensor) -> Tensor:
        """Windows [m, W] of the batch's patches as windows of the patches of these crops, int64 [n]."""
        place = crops.new_zeros(len(self.x.image_masks))  # of each crop of the batch among these
        place[crops] = torch.arange(len(crops), device=place.device)
        crop = windows.clamp(min=0) // self.patches
        patch = windows % self.patches
        local = place[crop] * self.patches + patch
        return torch.where(windows >= 0, local, MISSING)


def _by_owner(owner: Tensor, size: int) -> list[Tensor]:
    """For each rank the indices of what it owns."""
    return [(owner == rank).nonzero()[:, 0] for rank in range(size)]


def _owners(crops: int, patches: int, windows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The rank of each crop, int64 [N], and of each window, int64 [M]; the largest pictures are dealt first."""
    device = windows.device
    there = windows >= 0
    crop = windows.clamp(min=0) // patches
    last = torch.where(there, crop, -1).amax(1)
    first = torch.where(there, crop, crops).amin(1)
    first = torch.where(last >= 0, first, 0)
    if not crops:
        nobody = torch.zeros(0, dtype=torch.int64, device=device)
        return nobody, torch.zeros_like(first)
    # neighbours are joined where more windows have begun than ended
    joins = torch.zeros(crops + 1, dtype=torch.int64, device=device)
    spans = last > first
    starts = first[spans] + 1
    ends = last[spans] + 1
    joins.index_add_(0, starts, torch.ones_like(starts))
    joins.index_add_(0, ends, -torch.ones_like(ends))
    open_windows = joins.cumsum(0)
    begins = open_windows[:crops] == 0
    picture = begins.long().cumsum(0) - 1
    sizes = torch.bincount(picture).tolist()
    rank_of = torch.tensor(_dealt(sizes, size), dtype=torch.int64, device=device)
    owner = rank_of[picture]
    return owner, owner[first.clamp(max=crops - 1)]


def _dealt(sizes: list[int], size: int) -> list[int]:
    """The rank of each picture of so many crops: the largest first, each to who holds least."""
    held = [0] * size
    rank_of = [0] * len(sizes)
    largest_first = sorted(range(len(sizes)), key=lambda number: -sizes[number])
    for number in largest_first:
        rank = held.index(min(held))
        rank_of[number] = rank
        held[rank] += sizes[number]
    return rank_of


def _padded(x: Tensor, count: int, name: str) -> Tensor:
    lacking = count - len(x)
    more = x.new_full((lacking, *x.shape[1:]), KINDS[name].padding)
    return torch.cat([x, more])
