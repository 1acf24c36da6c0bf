"""One lane with what turns its references into tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from molmo_ds.batch import Batch, Sample
from molmo_ds.data.decode import BadSample
from molmo_ds.data.order.lanes import Lane, Reference, RottenSource
from molmo_ds.data.order.losses import add
from molmo_ds.data.order.packing import ROUND
from molmo_ds.data.order.selected import row

if TYPE_CHECKING:
    from molmo_ds.data.order.loader import Mixture


@dataclass(frozen=True)
class Sequence:
    """The result of a worker: one lane's next sequence (B = 1), the lane's state after it, and what was skipped."""

    lane: int
    row: Batch
    state: dict[str, Any]
    skipped: list[str]
    references: list[tuple[str, int, int]]  # source, sample, epoch of each document
    # by losses.Kind.name: the lane's last sample that lost something, and how much
    losers: dict[str, str] = field(default_factory=dict)


class Sequencer:
    """Makes the sequences of one lane."""

    def __init__(self, mixture: Mixture, lane: int, packing: str):
        self.mixture = mixture
        self.packing = packing
        self.skipped: list[str] = []
        self.losers: dict[str, str] = {}
        self.lane = Lane(lane, mixture.orders, mixture.rates, self._size, mixture.budget)

    def next(self) -> Sequence:
        samples: list[Sample] = []
        while not samples:  # a sequence whose samples are all bad is left out
            references = []
            for reference in self._draw():
                try:
                    samples.append(self.mixture.build(reference))
                except BadSample as error:
                    self.lane.bad += 1
                    self.skipped.append(f"{self.mixture.describe(*reference[:2])}: {error}")
                else:
                    references.append((self.mixture.names[reference[0]], *reference[1:]))
                    self._count_lost(reference)
        length = self.mixture.budget.tokens
        if self.packing == "to_128":
            length = min(length, -(-len(samples[0].input_ids) // ROUND) * ROUND)
        state = self.lane.state() | {"stamp": self.mixture.stamp}
        made = Sequence(
            self.lane.lane, row(samples, length), state, self.skipped, references, dict(self.losers)
        )
        self.skipped = []
        return made

    def _draw(self) -> list[Reference]:
        try:
            return self.lane.next()
        except RottenSource as error:
            raise ValueError(f"{error} The last: {self.skipped[-1]}") from None

    def _count_lost(self, reference: Reference) -> None:
        for kind, amount in add(self.lane.lost, self.mixture.lost(reference[0])):
            where = self.mixture.describe(*reference[:2])
            self.losers[kind.name] = f"{amount} {kind.unit} of {where}"

    def _size(self, source: int, sample: int, epoch: int) -> tuple[int, int] | None:
        try:
            return self.mixture.size(source, sample, epoch)
        except BadSample as error:
            self.skipped.append(f"{self.mixture.describe(source, sample)}: {error}")
            return None
