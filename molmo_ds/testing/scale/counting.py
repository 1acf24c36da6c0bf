"""A layer under the files of weights and checkpoints that counts what a process opens, asks and reads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from molmo_ds import files
from molmo_ds.stores.ranges import Ranges
from molmo_ds.weights import blocks, tensor_files


@dataclass
class Counts:
    """What one process has done with files below a folder."""

    opens: int = 0
    asks: int = 0  # of a size, or whether a file is there
    bytes: int = 0  # read
    largest: int = 0  # bytes of one read

    def __add__(self, other: "Counts") -> "Counts":
        sums = self.opens + other.opens, self.asks + other.asks, self.bytes + other.bytes
        return Counts(*sums, max(self.largest, other.largest))

    def __mul__(self, times: int) -> "Counts":
        return Counts(self.opens * times, self.asks * times, self.bytes * times, self.largest)


@contextmanager
def counted(folder: Path) -> Iterator[Counts]:
    """Counts what happens inside, to files below a folder of a disk."""
    counts = Counts()

    def here(place: Any) -> bool:
        return Path(str(place)).is_relative_to(folder)

    def opened(ranges: Ranges) -> int:
        counts.opens += here(ranges.place) and ranges.stream is None
        return real["_opened"](ranges)

    def read(ranges: Ranges, start: int, stop: int) -> np.ndarray:
        size = (stop - start) * here(ranges.place)
        counts.bytes += size
        counts.largest = max(counts.largest, size)
        return real["read"](ranges, start, stop)

    def size(ranges: Ranges) -> int:
        counts.asks += here(ranges.place)
        return real["size"](ranges)

    def read_bytes(path: Path) -> bytes:
        data = whole(path)
        counts.opens += here(path)
        counts.bytes += len(data) * here(path)
        return data

    def read_text(path: Path, *arguments: Any, **options: Any) -> str:
        text = whole_text(path, *arguments, **options)
        counts.opens += here(path)
        counts.bytes += len(text.encode()) * here(path)
        return text

    def size_of(path: str) -> int:
        counts.asks += here(path)
        return size_asked(path)

    def stat(path: Path, **arguments: Any) -> Any:
        counts.asks += here(path)
        return asked(path, **arguments)

    real: dict[str, Callable] = {name: vars(Ranges)[name] for name in ("_opened", "read", "size")}
    whole, whole_text, asked = Path.read_bytes, Path.read_text, Path.stat
    size_asked = files.size
    with (
        patch.multiple(Ranges, _opened=opened, read=read, size=size),
        patch.multiple(Path, read_bytes=read_bytes, read_text=read_text, stat=stat),
        patch.object(files, "size", size_of),
    ):
        yield counts


@contextmanager
def hollow() -> Iterator[None]:
    """Ranges of files that are not there: they hold zeros, and what is read counts as verified.

    Put it around `counted`, which then counts the reads.
    """

    def read(ranges: Ranges, start: int, stop: int) -> np.ndarray:
        ranges._opened()
        return np.zeros(stop - start, np.uint8)

    def opened(ranges: Ranges) -> int:
        ranges.stream = ranges.stream or open("/dev/null", "rb")  # noqa: SIM115 (closed by close)
        return ranges.stream.fileno()

    with (
        patch.multiple(Ranges, _opened=opened, read=read),
        patch.object(blocks, "verify", lambda *_: None),
        patch.object(tensor_files, "_verify", lambda *_: None),
        patch.object(blocks, "zlib", SimpleNamespace(crc32=lambda *_: 0)),
    ):
        yield
