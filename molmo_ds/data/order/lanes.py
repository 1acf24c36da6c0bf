"""The global order: the place of each sample, a pure function of (seed, source, epoch, lane, position).

The stream is V lanes, V = the global batch; lane v yields sequence v of every step. Nothing here knows of ranks and
workers, so they may change whenever a run starts again. A lane's state is a small dictionary that fits into JSON.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from molmo_ds.data.order import losses
from molmo_ds.data.order.packing import Budget

BLOCK_CHUNKS = 4  # chunks whose samples are mixed with each other
MOST_BAD = 1000  # bad samples of a lane before half of all is too many
DRAWS = 256  # draws from the mixture that share one generator
HASHED = 1 << 16  # first samples of chunks that are written at once, for the hash of the order

Reference = tuple[int, int, int]  # source, sample, epoch
# (source, sample, epoch) -> (tokens, crops), None = bad
Size = Callable[[int, int, int], tuple[int, int] | None]


def generator(*key: int | str) -> np.random.RandomState:
    """A generator that is a pure function of its key; NumPy never changes the stream of RandomState."""
    return np.random.RandomState(np.frombuffer(hashlib.sha256(repr(key).encode()).digest(), "<u4"))


def hash_of_bounds(sets: list[Any]) -> str:
    """Of [BLOCK_CHUNKS, [first, second, ...], ...] as JSON, written piece by piece: there may be 10^8 chunks."""
    hashed = hashlib.sha256(f"[{BLOCK_CHUNKS}".encode())
    for bounds in sets:
        for first in range(0, len(bounds), HASHED):
            numbers = bounds[np.arange(first, min(first + HASHED, len(bounds)))].tolist()
            hashed.update((", " if first else ", [").encode() + str(numbers)[1:-1].encode())
        hashed.update(b"]")
    hashed.update(b"]")
    return hashed.hexdigest()[:16]


class RottenSource(ValueError):
    """Raised if too few samples can be used for reading to end."""


class Order:
    """The samples of one source, dealt to the lanes again in every epoch.

    `bounds` (int64 [C + 1], an array or Bounds) are the first samples of the chunks and the end. In each epoch the
    chunks are permuted and dealt to the lanes like cards; a lane permutes its samples inside blocks of BLOCK_CHUNKS
    chunks. So each sample appears once per epoch over all lanes, reads stay local, and a place is found without walking
    to it.
    """

    def __init__(self, name: str, bounds: np.ndarray, seed: int, lanes: int):
        if len(bounds) - 1 < lanes:
            raise ValueError(
                f"Data set '{name}' has {bounds[-1]} samples, fewer than the {lanes} sequences of a global batch; "
                "lower global_batch or give it more samples."
            )
        self.name = name
        self.bounds = bounds
        self.seed = seed
        self.lanes = lanes
        self._served = set(range(lanes))
        self._deals: dict[int, dict[int, np.ndarray]] = {}
        self._starts: dict[tuple[int, int], np.ndarray] = {}
        self._blocks: dict[int, tuple[tuple[int, int], np.ndarray]] = {}

    def serve(self, lanes: Iterable[int]) -> None:
        """Keep the chunks of these lanes only, until others are asked for; every worker process calls it first."""
        self._served = set(lanes)
        self._deals = {}

    def length(self, lane: int, epoch: int) -> int:
        """Samples of a lane in an epoch."""
        return int(self._block_starts(lane, epoch)[-1])

    def at(self, lane: int, epoch: int, position: int) -> int:
        """The sample at a position, 0 .. length - 1, of a lane's epoch."""
        starts = self._block_starts(lane, epoch)
        block = int(np.searchsorted(starts, position, side="right")) - 1
        known, samples = self._blocks.get(lane, (None, None))
        if known != (epoch, block):
            samples = self._permuted(lane, epoch, block)
            self._blocks[lane] = (epoch, block), samples
        return int(samples[position - starts[block]])

    def _dealt(self, lane: int, epoch: int) -> np.ndarray:
        if lane not in self._deals.get(epoch, ()):
            self._served.add(lane)  # in one process several ranks' lanes may follow each other
            # lanes are in the same epoch or in neighbouring ones
            if epoch not in self._deals and len(self._deals) > 1:
                del self._deals[min(self._deals)]
            # the order of permutation(chunks), in half the memory
            chunks = np.arange(len(self.bounds) - 1, dtype=np.int32)
            generator(self.seed, self.name, epoch).shuffle(chunks)
            self._deals[epoch] = {n: chunks[n :: self.lanes].copy() for n in self._served}
        return self._deals[epoch][lane]

    def _block_starts(self, lane: int, epoch: int) -> np.ndarray:
        if (lane, epoch) not in self._starts:
            dealt = self._dealt(lane, epoch)
            ends = np.cumsum(self.bounds[dealt + 1] - self.bounds[dealt])
            last = (
                np.minimum(
                    np.arange(BLOCK_CHUNKS, len(dealt) + BLOCK_CHUNKS, BLOCK_CHUNKS), len(dealt)
                )
                - 1
            )
            self._starts = {key: value for key, value in self._starts.items() if key[0] != lane}
            self._starts[lane, epoch] = np.concatenate([[0], ends[last]])
        return self._starts[lane, epoch]

    def _permuted(self, lane: int, epoch: int, block: int) -> np.ndarray:
        dealt = self._dealt(lane, epoch)[block * BLOCK_CHUNKS : (block + 1) * BLOCK_CHUNKS]
        samples = np.concatenate([np.arange(self.bounds[c], self.bounds[c + 1]) for c in dealt])
        return samples[
            generator(self.seed, self.name, epoch, lane, block).permutation(len(samples))
        ]


class Lane:
    """One sequence of every global batch: draws from the mixture, keeps a pool of references, packs from it.

    `rates` (float [sources], sum 1) are the shares of samples. `size` tells tokens and crops of a sample, or None for
    one that cannot be used. `state` is all there is to know: draws made, (epoch, position) per source, the pool as
    [source, sample, epoch, tokens, crops], the number of sequences made, how many samples were seen and found bad, and
    how much was lost of how many (`losses.KINDS`).
    """

    def __init__(
        self, lane: int, orders: list[Order], rates: np.ndarray, size: Size, budget: Budget
    ):
        self.lane = lane
        self.orders = orders
        self.size = size
        self.budget = budget
        self._edges = np.cumsum(rates)[:-1]
        self._drawn: tuple[int, np.ndarray] = (-1, np.empty(0))
        self.draws = 0
        self.places = [[0, 0] for _ in orders]
        self.pool = []
        self.packs = 0
        self.seen = 0
        self.bad = 0
        self.lost = dict.fromkeys(losses.NAMES, 0)

    def state(self) -> dict[str, Any]:
        """A copy of the lane's state for a checkpoint; JSON."""
        places = [list(place) for place in self.places]
        pool = [list(entry) for entry in self.pool]
        counts = {
            "packs": self.packs,
            "seen": self.seen,
            "bad": self.bad,
        }
        return {"draws": self.draws, "places": places, "pool": pool} | counts | self.lost

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.draws = state["draws"]
        self.packs = state.get("packs", 0)  # states of before 2026-11-29 do not have it
        self.seen = state["seen"]
        self.bad = state["bad"]
        # states of before 2026-11-30 do not have all of them
        self.lost = {name: state.get(name, 0) for name in losses.NAMES}
        self.places = [list(place) for place in state["places"]]
        self.pool = [list(entry) for entry in state["pool"]]

    def next(self) -> list[Reference]:
        """The samples of the lane's next sequence, the oldest first."""
        while len(self.pool) < self.budget.pool_size:
            self._draw()
        chosen = self.budget.choose([entry[3:] for entry in self.pool], self.packs)
        self.packs += 1
        pack = [tuple(self.pool[i][:3]) for i in chosen]
        taken = set(chosen)
        self.pool = [entry for i, entry in enumerate(self.pool) if i not in taken]
        return pack

    def _draw(self) -> None:
        block, index = divmod(self.draws, DRAWS)
        if self._drawn[0] != block:
            seed = self.orders[0].seed
            self._drawn = block, generator(seed, "mixture", self.lane, block).random_sample(DRAWS)
        source = int(np.searchsorted(self._edges, self._drawn[1][index], side="right"))
        self.draws += 1
        order = self.orders[source]
        place = self.places[source]
        epoch, position = place
        sample = order.at(self.lane, epoch, position)
        self.places[source] = (
            [epoch, position + 1]
            if position + 1 < order.length(self.lane, epoch)
            else [epoch + 1, 0]
        )
        size = self.size(source, sample, epoch)
        self.seen += 1
        if size is None:
            self.bad += 1
            if self.bad > MOST_BAD and self.bad > self.seen / 2:
                raise RottenSource(
                    f"{self.bad} of {self.seen} samples cannot be used; tools/inspect_shards.py says why."
                )
        else:
            self.pool.append([source, sample, epoch, *size])
