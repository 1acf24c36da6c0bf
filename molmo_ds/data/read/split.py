"""A data set of which each annotation is a sample: every question of a picture is dealt, drawn and counted alone."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from molmo_ds.data.read.recent import Recent
from molmo_ds.data.read.shard_list import Shard
from molmo_ds.data.read.shards import INDEX_HINT, OPEN_ROWS, ShardSet, chunk_bounds


class SplitSet:
    """The annotations of a ShardSet by number, read as records of one annotation; a record without any stays one.

    ValueError for a folder whose index does not count annotations.
    """

    def __init__(self, whole: ShardSet, lanes: int = 1):
        self.whole = whole
        self.shards = whole.shards
        starts = self.shards.annotation_starts
        if starts is None:
            raise ValueError(
                f"The index of {whole.path} does not count annotations, which split_annotations needs; {INDEX_HINT}"
                f" {os.path.dirname(self.shards[0].path)}"
            )
        self.starts = starts  # the first of each tar, and the end
        self.bounds = chunk_bounds(starts, self.shards.bytes, lanes)
        self.fingerprint = f"{whole.fingerprint} by annotation"
        self.serve(64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def serve(self, chunks: int, rows: int = OPEN_ROWS) -> None:
        """As `ShardSet.serve`; a chunk of annotations may lie in two of records."""
        self.whole.serve(2 * chunks, rows)
        self._ends = Recent(rows, weigh=len)

    def check(self, rank: int = 0, ranks: int = 1) -> None:
        """As `ShardSet.check`."""
        self.whole.check(rank, ranks)

    def record(self, index: int) -> dict[str, Any]:
        """As `ShardSet.record`, with one annotation."""
        sample, annotation = self.place(index)
        return _only(self.whole.record(sample), annotation)

    def read(self, index: int) -> dict[str, Any]:
        """As `ShardSet.read`, with one annotation."""
        sample, annotation = self.place(index)
        return _only(self.whole.read(sample), annotation)

    def locate(
        self, index: int, columns: Sequence[str] | None = None
    ) -> tuple[Shard, dict[str, Any]]:
        """As `ShardSet.locate`, of the record that holds the annotation."""
        return self.whole.locate(self.place(index)[0], columns)

    def place(self, index: int) -> tuple[int, int]:
        """(the sample that holds an annotation, its number there)."""
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        ends = self._ends.get(shard, lambda: np.cumsum(self.whole.annotation_counts(shard)))
        number = index - int(self.starts[shard])
        row = int(np.searchsorted(ends, number, side="right"))
        before = int(ends[row - 1]) if row else 0
        return int(self.shards.starts[shard]) + row, number - before


def _only(record: dict[str, Any], annotation: int) -> dict[str, Any]:
    return record | {"annotations": record["annotations"][annotation : annotation + 1]}
