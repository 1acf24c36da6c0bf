"""One file, on a disk or in a store, read by ranges: what ranks read of tensors comes through here."""

import os
from typing import Any, BinaryIO

import numpy as np

from molmo_ds import files
from molmo_ds.files import Place, Remote, ShortRead

LARGEST = 1 << 30  # bytes that one call to the system reads


class Ranges:
    """A file that is opened at the first read and stays open; it can be pickled.

    Raises OSError: FileNotFoundError for what is not there, ShortRead where the file ends too early.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.stream: BinaryIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "stream": None}

    def size(self) -> int:
        """Bytes of the file."""
        if isinstance(self.place, Remote):
            return files.size(self.place.url)
        return os.fstat(self._opened()).st_size

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bytes [start, stop), uint8, in memory of their own."""
        if isinstance(self.place, Remote):
            return np.frombuffer(files.read_long(self.place.url, start, stop), np.uint8)
        data = np.empty(stop - start, np.uint8)
        done = 0
        while done < len(data):
            count = os.preadv(self._opened(), [data[done : done + LARGEST]], start + done)
            if not count:
                raise ShortRead(f"{self.place} ends at byte {start + done}, before {stop}")
            done += count
        return data

    def close(self) -> None:
        """Close it; the next read opens it again."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def _opened(self) -> int:
        if self.stream is None:
            self.stream = open(self.place, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        return self.stream.fileno()
