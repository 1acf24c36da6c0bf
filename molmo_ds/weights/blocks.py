"""A rank's file of a checkpoint, of which any part can be verified as it is read.

It is a safetensors file whose last tensor, "checksums", holds the CRC-32 of every 16 KiB of the others; blocks begin
again with each tensor. Where tensors lie stands in the checkpoint's index, so readers need no header.
"""

import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molmo_ds.files import Place, ShortRead
from molmo_ds.stores.ranges import Ranges
from molmo_ds.weights.checksums import BLOCK, Facts, count, sums
from molmo_ds.weights.tensor_files import DTYPES

TABLE = "checksums"
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Damaged(ValueError):
    """A file is not as it was written; `reason` says it in a few words."""

    def __init__(self, folder: Place, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder = folder
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.folder} is damaged: {self.reason}; use another checkpoint."


@dataclass(frozen=True)
class Layout:
    """A file before it is written: its header, and (byte in the file, number of the first block) of each tensor."""

    header: bytes
    places: dict[str, tuple[int, int]]
    bytes: int
    blocks: int

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Layout":
        """Of tensors in this order."""
        entries: dict[str, Any] = {}
        places = {}
        end = blocks = 0
        for name, tensor in tensors.items():
            places[name] = (end, blocks)
            entries[name] = entry(NAMES[tensor.dtype], tensor.shape, end, tensor.nbytes)
            end += tensor.nbytes
            blocks += count(tensor.nbytes)
        entries[TABLE] = entry("U8", [4 * blocks], end, 4 * blocks)
        text = json.dumps(entries).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        header = struct.pack("<Q", len(text)) + text
        begin = len(header)
        placed = {name: (begin + byte, block) for name, (byte, block) in places.items()}
        return cls(header, placed, begin + end + 4 * blocks, blocks)

    def facts(self, table: bytes) -> dict[str, int]:
        """The file's `Facts`."""
        return {"bytes": self.bytes, "crc32": zlib.crc32(table), "blocks": self.blocks}


def write(path: Path, tensors: dict[str, Tensor], layout: Layout) -> dict[str, int]:
    """Write and sync tensors of the CPU; the file's `Facts`."""
    found = [np.empty(0, "<u4")]
    with open(path, "wb") as stream:
        stream.write(layout.header)
        for tensor in tensors.values():
            data = tensor.reshape(-1).view(torch.uint8).numpy()
            found.append(sums(data))
            stream.write(data)
        table = np.concatenate(found).tobytes()
        stream.write(table)
        stream.flush()
        os.fsync(stream.fileno())
    return layout.facts(table)


def entry(kind: str, shape: Any, begin: int, size: int) -> dict[str, Any]:
    """What a header says of a tensor."""
    return {"dtype": kind, "shape": list(shape), "data_offsets": [begin, begin + size]}


class Blocks:
    """A rank's file, opened; what it gives is as it was written, or Damaged is raised."""

    def __init__(self, file: Place, facts: Facts) -> None:
        self.file = file
        self.facts = facts
        self.ranges = Ranges(file)
        self.table: np.ndarray | None = None

    def read(self, offset: int, size: int, block: int, first: int, last: int) -> np.ndarray:
        """Bytes [first, last) of the tensor of `size` bytes at byte `offset`, whose first block is number `block`."""
        if self.table is None:
            self.table = self._read_table()
        begin = first // BLOCK * BLOCK
        end = min(count(last) * BLOCK, size)
        data = self._read(offset + begin, offset + end)
        wanted = self.table[block + begin // BLOCK : block + count(end)]
        verify(self, data, wanted)
        return data[first - begin : last - begin]

    def damaged(self, reason: str) -> Damaged:
        """The error, with the checkpoint's name."""
        return Damaged(self.file.parent, reason)

    def _read_table(self) -> np.ndarray:
        size = 4 * self.facts.blocks
        data = self._read(self.facts.bytes - size, self.facts.bytes)
        if zlib.crc32(data) != self.facts.crc32:
            raise self.damaged(f"the checksum of {self.file.name} is wrong")
        return data.view("<u4")

    def _read(self, start: int, stop: int) -> np.ndarray:
        try:
            return self.ranges.read(start, stop)
        except FileNotFoundError:
            raise self.damaged(f"{self.file.name} is missing") from None
        except ShortRead:
            raise self.damaged(f"{self.file.name} is cut short") from None


def verify(blocks: Blocks, data: np.ndarray, wanted: np.ndarray) -> None:
    """Damaged unless the blocks of `data` have these checksums."""
    if not np.array_equal(sums(data), wanted):
        raise blocks.damaged(f"the checksum of {blocks.file.name} is wrong")
