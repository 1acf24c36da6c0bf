"""Packing: chooses the samples that share a sequence, and joins their tensors into a Batch."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import default_collate

from molmo_ds.batch import (
    KINDS,
    MISSING,
    PER_TOKEN,
    Batch,
    Sample,
    learnt_rows_of,
    shifted,
)
from molmo_ds.config import DataConfig
from molmo_ds.data.order.knapsack import PATIENCE, most_valuable

SLACK = 512  # a sequence counts as full when less than 1 / SLACK of its tokens is free
ROUND = 128  # of packing = to_128
# joined in a way of their own; what else a sample has is put one behind the other
OWN_WAY = ("document_ids", "images", "windows", "image_positions")


@dataclass(frozen=True)
class Budget:
    """Limits of a sequence, and the number of samples that a lane chooses from."""

    tokens: int
    crops: int
    pool_size: int
    crop_weight: float | None = None  # of packing = knapsack: tokens that a crop is worth

    @classmethod
    def of(cls, data: DataConfig) -> "Budget":
        """The budget of a configuration; the padded modes hold one sample per sequence."""
        pool = data.pool_size if data.packing in ("pack", "knapsack") else 1
        weight = data.crop_weight if data.packing == "knapsack" else None
        return cls(data.sequence_length, data.crops_per_sequence, pool, weight)

    def choose(self, sizes: list[list[int]], number: int) -> list[int]:
        """Indices of the samples, [tokens, crops] from old to new, of a lane's sequence `number`."""
        if self.crop_weight is None:
            return choose(sizes, self.tokens, self.crops)
        oldest = number % PATIENCE == 0
        return most_valuable(sizes, self.tokens, self.crops, self.crop_weight, oldest)


def choose(sizes: list[list[int]], tokens: int, crops: int) -> list[int]:
    """Indices of the samples, given as [tokens, crops] from old to new, that fill one sequence best.

    The oldest is always taken, so none waits for ever. The rest of the token budget is a subset-sum problem under the
    crop budget: `fewest[n]` is the fewest crops with which the samples looked at so far can make exactly n tokens.
    Samples are looked at from old to new until the sequence is full, so that older ones go first. Deterministic.
    """
    room = tokens - sizes[0][0]
    spare = crops - sizes[0][1]
    assert room >= 0 and spare >= 0, "one sample alone is over the budget"
    fewest = np.full(room + 1, spare + 1, np.int32)
    fewest[0] = 0
    goal = room - tokens // SLACK
    history = []
    for index in range(1, len(sizes)):
        if goal <= 0 or (history and int(fewest[max(goal, 0) :].min()) <= spare):
            break
        length, cost = sizes[index]
        if length <= room and cost <= spare:
            history.append((index, fewest))
            wider = fewest.copy()
            np.minimum(
                fewest[length:], fewest[: room + 1 - length] + np.int32(cost), out=wider[length:]
            )
            fewest = wider
    left = int(np.flatnonzero(fewest <= spare)[-1])
    chosen = [0]
    for index, before in reversed(history):
        if before[left] != fewest[left]:  # reached only with this one
            chosen.append(index)
            left -= sizes[index][0]
        fewest = before
    return sorted(chosen)


def collate(packs: list[list[Sample]], sequence_length: int) -> Batch:
    """One row of `sequence_length` tokens per pack, padded with zeros; document_ids count a row's samples from 1."""
    return merge([row(pack, sequence_length) for pack in packs])


def row(pack: list[Sample], sequence_length: int) -> Batch:
    """One sequence as a Batch with B = 1, still without the blank crop: N and M may be 0."""
    lengths = [len(sample.input_ids) for sample in pack]
    filled = sum(lengths)
    assert filled <= sequence_length, "the budget was not kept"
    joined = {}
    for name in (name for name in KINDS if name not in OWN_WAY):
        parts = [getattr(sample, name) for sample in pack]
        if name in PER_TOKEN:
            joined[name] = torch.zeros(1, sequence_length, dtype=parts[0].dtype)
            joined[name][0, :filled] = torch.cat(parts)
        else:
            joined[name] = torch.cat(parts)
    documents = torch.zeros(1, sequence_length, dtype=torch.int32)
    documents[0, :filled] = torch.arange(1, len(pack) + 1).repeat_interleave(torch.tensor(lengths))
    widest = max(sample.windows.shape[1] for sample in pack)
    windows = [
        functional.pad(sample.windows, (0, widest - sample.windows.shape[1]), value=MISSING)
        for sample in pack
    ]
    patches = [sample.image_masks.numel() for sample in pack]
    crops = [crop for sample in pack for crop in sample.images]
    # in a worker straight into shared memory: one copy
    images = default_collate(crops) if crops else pack[0].images
    return Batch(
        **joined,
        document_ids=documents,
        images=images,
        windows=_following(windows, patches),
        image_positions=_following([sample.image_positions for sample in pack], lengths),
        learnt_rows=learnt_rows_of(joined["loss_weights"]),
    )


def merge(rows: list[Batch]) -> Batch:
    """Batches under each other, padded to the longest; a blank crop is added where no row has a picture."""
    length = max(row.input_ids.shape[1] for row in rows)
    widest = max(row.windows.shape[1] for row in rows)
    moved = []
    tokens = 0
    patches = 0
    for row in rows:
        row = row.padded(length, 0, patches=widest)
        moved.append(
            row.replace(
                windows=shifted(row.windows, patches),
                image_positions=shifted(row.image_positions, tokens),
            )
        )
        tokens += row.input_ids.numel()
        patches += row.image_masks.numel()
    joined = {name: _join([getattr(row, name) for row in moved]) for name in KINDS}
    batch = Batch(**joined, learnt_rows=learnt_rows_of(joined["loss_weights"]))
    return batch.padded(length, 1, 1)


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    # crops are megabytes: no copy without need
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _following(parts: list[torch.Tensor], sizes: list[int]) -> torch.Tensor:
    """Indices [m, ...] into things of these sizes as indices into all of them, one after the other."""
    ends = torch.tensor(sizes).cumsum(0)
    starts = ends - torch.tensor(sizes)
    by = starts.repeat_interleave(torch.tensor([len(part) for part in parts]))
    joined = torch.cat(parts)
    return shifted(joined, by.view(-1, *[1] * (joined.dim() - 1)))
