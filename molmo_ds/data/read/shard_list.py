"""The tars of a data set and the chunks they are read in, as arrays: 100,000 tars of 10^9 samples take some megabytes.

As Python objects they would be hundreds, and each forked worker would copy what it touches.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shard:
    """One tar as `.nv-meta/molmo_ds.json` describes it."""

    path: str
    samples: int
    bytes: int
    sidecar_sha256: str
    annotations: int | None = None  # None of a folder that was indexed before 2026-11-30


class ShardList(Sequence):
    """Shards by number; each is made when it is asked for."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        folders = []
        names = []
        for shard in shards:
            folder, slash, name = shard.path.rpartition("/")
            folders.append(folder + slash)
            names.append(os.fsencode(name))
        self._folders = sorted(set(folders))
        number_of = {folder: number for number, folder in enumerate(self._folders)}
        self._folder = np.array([number_of[folder] for folder in folders], np.int32)
        self._names = np.array(names)
        hashes = [bytes.fromhex(shard.sidecar_sha256) for shard in shards]
        self._hashes = np.array(hashes, "V32")
        self._bytes = np.array([shard.bytes for shard in shards], np.int64)
        # the first sample of each, and the end
        self.starts = _starts([shard.samples for shard in shards])
        # the same where each annotation counts as a sample
        counts = [shard.annotations for shard in shards]
        self.annotation_starts = None if None in counts else _starts(counts)

    @property
    def bytes(self) -> int:
        """Of all tars together."""
        return int(self._bytes.sum())

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> Shard:
        if number >= len(self):
            raise IndexError(number)
        return Shard(
            self._folders[self._folder[number]] + os.fsdecode(self._names[number]),
            int(self.starts[number + 1] - self.starts[number]),
            int(self._bytes[number]),
            self._hashes[number].tobytes().hex(),
            self._annotations(number),
        )

    def holding(self, sample: int) -> int:
        """The number of the shard that holds a sample."""
        return int(np.searchsorted(self.starts, sample, side="right")) - 1

    def _annotations(self, number: int) -> int | None:
        starts = self.annotation_starts
        if starts is None:
            return None
        return int(starts[number + 1] - starts[number])


def _starts(counts: list[int]) -> np.ndarray:
    """int64, where each of them begins, one behind the other, and the end of all."""
    ends = np.cumsum(counts)
    return np.concatenate([[0], ends]).astype(np.int64)


class Bounds:
    """The first sample of each chunk, and the end: `bounds[chunk]` is computed, for one number or an array of them.

    Chunks are `length` samples, the last of a shard what is left, so that none lies in two shards.
    """

    def __init__(self, starts: np.ndarray, length: int) -> None:
        self.length = length
        self._starts = starts
        chunks = -(-np.diff(starts) // length)
        self._firsts = np.concatenate([[0], np.cumsum(chunks)])  # the first chunk of each shard

    def __len__(self) -> int:
        return int(self._firsts[-1]) + 1

    def __getitem__(self, chunk: int | np.ndarray) -> np.int64 | np.ndarray:
        from_end = np.less(chunk, 0)
        chunk = np.where(from_end, np.add(chunk, len(self)), chunk)
        shard = np.searchsorted(self._firsts, chunk, side="right") - 1
        last = len(self._starts) - 2
        shard = np.minimum(shard, last)  # the end is the last shard's
        inside = chunk - self._firsts[shard]
        first = self._starts[shard] + inside * self.length
        end = self._starts[shard + 1]
        return np.minimum(first, end)

    def holding(self, sample: int) -> int:
        """The number of the chunk that holds a sample."""
        shard = int(np.searchsorted(self._starts, sample, side="right")) - 1
        inside = (sample - self._starts[shard]) // self.length
        return int(self._firsts[shard] + inside)
