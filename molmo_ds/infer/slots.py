"""A KV cache of slots: answers come and go while others continue.

Running rows are always the first R slots, so a step reads a slice and gathers nothing; when a row ends, the last one
moves into its slot. Sizes are known on the host, so no step waits for the device. A token's place in its slot is its
number in the row. Its position is the same number, but for HeMolmo's, where windows that are not picked leave gaps.

Shapes: S slots, R running rows, A answers that begin, C tokens of a slot, L tokens of the longest row, B sequences of
T tokens in a prefill, N tokens that it writes, H heads, G key-value heads, d head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from molmo_ds.batch import Batch, Carry, SelectionBatch
from molmo_ds.model.decoder import Core, DecoderLayer
from molmo_ds.ops.cached_attention import cached_attention, step_plan, write_cache

# in buckets L is a multiple of it and R a power of two: few shapes, each of which a graph can replay
ROUND = 256


@dataclass(frozen=True)
class Bucket:
    """The shape of a decode step."""

    rows: int  # R
    longest: int  # L


@dataclass(frozen=True)
class Filling:
    """Where a prefill writes: token source[n] of the flattened [B * T] goes to place[n] of slot[n]; int64 [N] each."""

    source: Tensor
    slot: Tensor
    place: Tensor


class SlotCore(Core):
    """The attention of one layer with its keys and values [S, G, C, d]."""

    def __init__(self, slots: "Slots") -> None:
        self.slots = slots
        self.kept: tuple[Tensor, Tensor] | None = None

    def plan(self, x: Carry, dtype: torch.dtype) -> object:
        """A prefill's own plan, or a step's."""
        slots = self.slots
        return (
            super().plan(x, dtype)
            if slots.filling
            else step_plan(slots.places[: slots.width], slots.longest, dtype)
        )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, plan: object, dropout_p: float) -> Tensor:
        """As in `Core`."""
        slots = self.slots
        if self.kept is None:  # of zeros: NaN that a mask hides would spoil the sum
            shape = (slots.count, k.shape[1], slots.capacity, k.shape[3])
            self.kept = k.new_zeros(shape), v.new_zeros(shape)
        if slots.filling:
            to = slots.filling
            for kept, new in zip(self.kept, (k, v)):
                write_cache(kept, new, to.source, to.slot, to.place)
            return super().__call__(q, k, v, plan, 0.0)
        return cached_attention(q, k, v, *self.kept, plan)


class Slots:
    """The rows in flight of some decoder layers; while it is entered the layers use it, then their own cores again.

    Args:
        buckets: whether R and L of a step are rounded up, for few shapes; by default on a GPU.
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        count: int,
        capacity: int,
        device: torch.device,
        buckets: bool | None = None,
    ) -> None:
        self.attentions = [layer.self_attn for layer in layers]
        self.cores = [SlotCore(self) for _ in layers]
        self.count = count
        self.capacity = capacity
        self.buckets = device.type == "cuda" if buckets is None else buckets
        self.lengths: list[int] = []  # tokens of each running row that are in the cache
        # the same, 0 for free slots: where each row's newest token goes
        self.places = torch.zeros(count, dtype=torch.int64, device=device)
        self.positions = torch.zeros(count, dtype=torch.int64, device=device)  # that it has
        # each row's newest, not yet in the cache
        self.tokens = torch.zeros(count, dtype=torch.int64, device=device)
        self.filling: Filling | None = None

    def __enter__(self) -> "Slots":
        self.own = [attention.core for attention in self.attentions]
        for attention, core in zip(self.attentions, self.cores):
            attention.core = core
        return self

    def __exit__(self, *_: object) -> None:
        for attention, core in zip(self.attentions, self.own):
            attention.core = core

    @property
    def rows(self) -> int:
        """R."""
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Rows that a step computes: in buckets the next power of two."""
        return min(1 << (self.rows - 1).bit_length(), self.count) if self.buckets else self.rows

    @property
    def longest(self) -> int:
        """L, the newest tokens included."""
        needed = max(self.lengths) + 1
        return min(-(-needed // ROUND) * ROUND, self.capacity) if self.buckets else needed

    @property
    def bucket(self) -> Bucket:
        """The shape of the next step."""
        return Bucket(self.width, self.longest)

    def admit(self, batch: Batch, ends: Tensor) -> None:
        """Let the next pass prefill `batch` and give each of its answers the next slot.

        Args:
            ends: int64 [A], for each answer the index in the flattened [B * T] of the token after which it begins; it
                sees the prefix of its document and its branch. An index may come several times.
        """
        sequence = ends // batch.input_ids.shape[1]
        documents = batch.document_ids[sequence]
        branches = batch.branch_ids[sequence]
        own = batch.branch_ids.flatten()[ends][:, None]
        seen = (documents == batch.document_ids.flatten()[ends][:, None]) & (
            (branches == 0) | (branches == own)
        )
        answer, token = seen.nonzero(as_tuple=True)
        source = sequence[answer] * batch.input_ids.shape[1] + token
        places = seen.cumsum(1)[answer, token] - 1
        lengths = seen.sum(1)
        positions = batch.position_ids.flatten()[ends] + 1
        first = self.rows
        assert isinstance(batch, SelectionBatch) or torch.equal(lengths, positions), (
            "a position is missing from a prompt, or there twice"
        )
        device = self.positions.device
        parts = (source, first + answer, places)
        self.filling = Filling(*(part.to(device, non_blocking=True) for part in parts))
        self.lengths += lengths.tolist()
        assert self.rows <= self.count and max(self.lengths) <= self.capacity, (
            "the slots do not suffice"
        )
        self.places[first : self.rows] = lengths.to(device, non_blocking=True)
        self.positions[first : self.rows] = positions.to(device, non_blocking=True)

    def carry(self) -> Carry:
        """What the decoder takes for one more token of every running row; `advance` follows the pass."""
        self.filling = None
        return Carry(
            input_ids=self.tokens[: self.width, None],
            position_ids=self.positions[: self.width, None],
        )

    def advance(self) -> None:
        """Count the tokens that a step has put into the cache."""
        self.lengths = [length + 1 for length in self.lengths]
        self.places[: self.rows] += 1
        self.positions[: self.rows] += 1

    def drop(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        """Leave `rows` running rows, after the move of some (from, to) into the slots of those that end."""
        if moves:
            old, new = (
                torch.tensor(slots).to(self.positions.device, non_blocking=True)
                for slots in zip(*moves)
            )
            longest = max(self.lengths[row] for row, _ in moves)
            for core in self.cores:
                for kept in core.kept:
                    kept[new, :, :longest] = kept[old, :, :longest]
            for kept in (self.places, self.positions, self.tokens):
                kept[new] = kept[old]
        for source, target in moves:
            self.lengths[target] = self.lengths[source]
        self.places[rows : self.rows] = 0
        self.positions[rows : self.rows] = 0
        del self.lengths[rows:]

    def select(self, rows: Tensor) -> None:
        """Go on with copies of these rows (int64 [R], repeats allowed), as beams do."""
        self.lengths = [self.lengths[row] for row in rows.tolist()]
        longest = max(self.lengths)
        for core in self.cores:
            for kept in core.kept:
                kept[: len(rows), :, :longest] = kept[rows, :, :longest]
        for kept in (self.places, self.positions, self.tokens):
            kept[: len(rows)] = kept[rows]
