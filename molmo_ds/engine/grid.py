"""The map of ranks: the place of this one on each axis, and the groups of those that differ from it on some axes only.

Ranks are numbered with the tensor axis fastest: neighbours share the decoder, then a sequence, then a stage. Groups
come from DeepSpeed where DeepSpeed makes them, and are made here where it does not. The axes "expert" (ranks over which
the experts are spread) and "expert_data" (ranks that hold the same experts) cut the others in their own way; DeepSpeed
makes them late, and they are added then.
"""

import itertools
import math
from collections.abc import Iterable, Iterator

import torch.distributed as dist

AXES = ("stage", "data", "sequence", "tensor")  # the last one varies fastest with the rank
# ranks whose losses add up; those of the tensor axis all have the same
LOSSES = ("stage", "data", "sequence")
# ranks that hold the same parameters, over which ZeRO splits and DeepSpeed averages
COPIES = ("data", "sequence")
Group = dist.ProcessGroup


class Grid:
    """Sizes, places and groups by axis.

    Args:
        sizes: of each of AXES.
        rank: this one.
        made: groups that DeepSpeed has made, each along one axis.
    """

    def __init__(self, sizes: dict[str, int], rank: int, made: Iterable[Group] = ()) -> None:
        self.rank = rank
        self.sizes = {axis: sizes.get(axis, 1) for axis in AXES}
        self.places = self._places(rank)
        self.groups = {tuple(dist.get_process_group_ranks(group)): group for group in made}
        along = [self.along(axis) for axis in AXES]
        wrong = [ranks for ranks in self.groups if ranks not in along]
        assert not wrong, f"DeepSpeed grouped {wrong}, which is no axis of {self.sizes}"

    def size(self, *axes: str) -> int:
        """Number of ranks that differ on these axes."""
        return math.prod(self.sizes[axis] for axis in axes)

    def place(self, axis: str) -> int:
        """Index of this rank on an axis."""
        return self.places[axis]

    def first(self, axes: Iterable[str]) -> bool:
        """Whether this rank is the first of those that differ from it on these axes only."""
        return all(self.places[axis] == 0 for axis in axes)

    def along(self, *axes: str, of: int | None = None) -> tuple[int, ...]:
        """The ranks that differ from this one (or from rank `of`) on these axes only, ascending."""
        here = self._places(self.rank if of is None else of)
        moves = [
            range(size) if axis in axes else (here[axis],) for axis, size in self.sizes.items()
        ]
        return tuple(self._rank(places) for places in itertools.product(*moves))

    def group(self, *axes: str) -> Group | None:
        """The group of `along(*axes)`; None for all ranks, unless they are one axis with a group of its own."""
        ranks = self.along(*axes)
        everybody = len(ranks) == self.size(*AXES)
        if everybody and (len(axes) > 1 or ranks not in self.groups):
            return None
        assert ranks in self.groups, f"no group of ranks {ranks} was made"
        return self.groups[ranks]

    def make(self, *axes: str) -> None:
        """Make the groups along these axes, unless DeepSpeed has; all ranks make the same calls."""
        if self.along(*axes) in self.groups:
            return
        for ranks in self._all_along(*axes):
            group = dist.new_group(list(ranks))
            if self.rank in ranks:
                self.groups[ranks] = group

    def complete(self) -> None:
        """Make the groups that an engine needs and DeepSpeed has not made; all ranks make the same calls."""
        if self.size("sequence") > 1:
            self.make("sequence")
        for axes in (("data",), COPIES, LOSSES):
            if self.size(*axes) < self.size(*AXES):
                self.make(*axes)

    def add(self, axis: str, group: Group) -> None:
        """An axis whose groups DeepSpeed lays over the others."""
        self.places[axis] = dist.get_rank(group)

    @property
    def stream(self) -> int:
        """Whose random numbers this rank uses: ranks that share the decoder drop the same."""
        return self.rank // self.size("tensor")

    def _places(self, rank: int) -> dict[str, int]:
        places = {}
        for axis in reversed(AXES):
            rank, places[axis] = divmod(rank, self.sizes[axis])
        return places

    def _rank(self, places: Iterable[int]) -> int:
        rank = 0
        for place, size in zip(places, self.sizes.values()):
            rank = rank * size + place
        return rank

    def _all_along(self, *axes: str) -> Iterator[tuple[int, ...]]:
        yield from sorted({self.along(*axes, of=rank) for rank in range(self.size(*AXES))})
