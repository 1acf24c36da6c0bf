"""Folders of weights, read by rows: a 72B model needs the memory of a few rows, and a rank reads only its own.

Reading takes .safetensors, local or remote, and local .bin, in one file or in shards with an index.
"""

import contextlib
import json
import math
import mmap
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molmo_ds import files
from molmo_ds.files import Place as Where
from molmo_ds.files import Remote
from molmo_ds.stores.ranges import Ranges
from molmo_ds.weights.checksums import Sums, count, sums

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
INDEX = "model.safetensors.index.json"
INDEXES = (INDEX, "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin", "model.pt")
PAGE = mmap.PAGESIZE
LARGEST = 1 << 62  # no tensor has that many elements


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor of a safetensors file lies."""

    file: Where
    dtype: torch.dtype
    shape: list[int]
    offset: int  # of its first byte in the file
    limit: int  # bytes of the file

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFolder:
    """The tensors of a folder (or of one file) by name; nothing but the headers is held.

    Raises ValueError in one sentence for a folder without weights, a file that is damaged or cut short, a name that is
    not there.
    """

    def __init__(self, path: str | Where) -> None:
        self.path = files.place(path)
        self._safe: dict[str, Place] = {}
        self._bin: dict[str, Path] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        self._ranges: dict[Where, Ranges] = {}
        self._open: dict[Path, dict[str, Tensor]] = {}  # .bin files
        # of the blocks of files, by name; `elements` compares what it reads with those that are here
        self.sums: dict[str, Sums] = {}
        for file, promised in _files(self.path).items():
            if file.suffix == ".safetensors":
                held = header(file)
                twice = held.keys() & self._safe.keys()
                self._safe |= held
            else:
                held = _load(file)
                twice = held.keys() & self._bin.keys()
                self._bin |= dict.fromkeys(held, file)
            if twice:
                raise ValueError(
                    f"{file} holds tensor '{min(twice)}', as another file does; keep one of the two."
                )
            if missing := sorted(set(promised) - held.keys()):
                raise ValueError(
                    f"{file} lacks tensor '{missing[0]}', which the index promises; copy the file again."
                )

    def names(self) -> list[str]:
        """All names, in the order of the files."""
        return [*self._safe, *self._bin]

    def __contains__(self, name: str) -> bool:
        return name in self._safe or name in self._bin

    def shape(self, name: str) -> list[int]:
        """A tensor's shape, without reading it from a safetensors file."""
        return list(self._safe[name].shape) if name in self._safe else list(self.rows(name).shape)

    def file(self, name: str) -> Where:
        """The file that holds a tensor."""
        if name not in self:
            raise ValueError(f"{self.path} has no tensor '{name}'.")
        return self._safe[name].file if name in self._safe else self._bin[name]

    def rows(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """Rows [first, last) of a tensor, by default all, as mapped memory: the pages come when they are read.

        Of a remote file these bytes are read, into memory of their own.
        """
        file = self.file(name)
        if name in self._bin:
            if file not in self._open:
                # from before torch 1.6: not mapped but read, one file at a time
                if not zipfile.is_zipfile(file):
                    self._open.clear()
                self._open[file] = _load(file)
            tensor = self._open[file][name]
            return tensor[first:last] if tensor.ndim else tensor
        place = self._safe[name]
        if isinstance(file, Remote):
            return _fetched(place, first, last)
        # a header of others may not be padded
        if not place.bytes or place.offset % place.dtype.itemsize:
            return self.read(name)[first:last]
        if file not in self._maps:
            with open(file, "rb") as stream:
                self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        count = math.prod(place.shape)
        whole = torch.frombuffer(
            self._maps[file], dtype=place.dtype, count=count, offset=place.offset
        )
        if last is not None:
            self._announce(place, first, min(last, place.shape[0]))
        return whole.view(place.shape)[first:last] if place.shape else whole.view(())

    def elements(self, name: str, first: int, last: int) -> Tensor:
        """Elements [first, last) of a flattened tensor, and no byte beside them, in memory of their own."""
        file = self.file(name)
        if name in self._bin:
            return self.rows(name).reshape(-1)[first:last]
        place = self._safe[name]
        size = place.dtype.itemsize
        ranges = self._ranges.setdefault(file, Ranges(file))
        start, stop = place.offset + first * size, place.offset + last * size
        wanted = self.sums.get(file.name)
        if wanted is None:
            data = ranges.read(start, stop)
        else:
            block = wanted.block
            begin = start // block * block
            end = min(count(stop, block) * block, place.limit)
            read = ranges.read(begin, end)
            _verify(file, read, block, wanted.values[begin // block : count(end, block)])
            data = read[start - begin : stop - begin]
            if (start - begin) % size:  # a header of others may not be padded
                data = data.copy()
        return torch.from_numpy(data).view(place.dtype)

    def _announce(self, place: Place, first: int, last: int) -> None:
        # the system reads these rows in one piece, which network storage needs, and not page by page
        row = place.bytes // place.shape[0]
        start = (place.offset + first * row) // PAGE * PAGE
        self._maps[place.file].madvise(mmap.MADV_WILLNEED, start, place.offset + last * row - start)

    def read(self, name: str) -> Tensor:
        """One tensor; of a safetensors file an own copy, of a .bin file mapped memory."""
        file = self.file(name)
        if name in self._bin or isinstance(file, Remote):
            return self.rows(name)
        place = self._safe[name]
        tensor = torch.empty(place.shape, dtype=place.dtype)
        if tensor.numel():
            with open(file, "rb", buffering=0) as stream:
                stream.seek(place.offset)
                view = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
                done = 0
                while done < len(view):
                    count = stream.readinto(view[done : done + (1 << 30)])
                    if not count:
                        raise ValueError(
                            f"{file} ends inside tensor '{name}'; copy the file again."
                        )
                    done += count
        return tensor


def _verify(file: Where, data: np.ndarray, block: int, wanted: np.ndarray) -> None:
    if not np.array_equal(sums(data, block), wanted):
        wrong = f"the checksum of {file.name} is wrong"
        raise ValueError(f"{file.parent} is damaged: {wrong}; copy the folder again.")


def _fetched(place: Place, first: int, last: int | None) -> Tensor:
    """Rows [first, last) of a tensor of a remote file."""
    rows = range(place.shape[0])[first:last] if place.shape else range(1)
    shape = [len(rows), *place.shape[1:]] if place.shape else []
    row = place.bytes // max(place.shape[0], 1) if place.shape else place.bytes
    start = place.offset + rows.start * row
    data = files.read_long(str(place.file), start, start + len(rows) * row)
    if not data:
        return torch.empty(shape, dtype=place.dtype)
    return torch.frombuffer(data, dtype=place.dtype).view(shape)


def check_numbers(file: str | Where, name: str, tensor: Tensor) -> None:
    """ValueError unless a tensor holds floating-point numbers that are all finite."""
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(
            f"{file}: tensor '{name}' is of type {kind}, which weights cannot have; copy the file again."
        )
    if tensor.numel() and not all(
        math.isfinite(end) for end in torch.stack(tensor.aminmax()).tolist()
    ):
        raise ValueError(
            f"{file}: tensor '{name}' holds a number that is not finite; copy the file again."
        )


def _files(path: Where) -> dict[Where, list[str]]:
    """Files of weights, and the names that an index promises in each."""
    if path.is_file():
        return {path: []}
    for name in (*INDEXES, *SINGLE):
        file = path / name
        if file.is_file():
            if isinstance(path, Remote) and ".safetensors" not in name:
                raise ValueError(
                    f"{file} cannot be read in parts, as .safetensors can; copy {path} to a disk first."
                )
            return _indexed(file) if name in INDEXES else {file: []}
    raise ValueError(
        f"{path} holds no weights: no {INDEX}, model.safetensors, pytorch_model.bin or model.pt."
    )


def _indexed(index: Where) -> dict[Where, list[str]]:
    try:
        shard_of = json.loads(index.read_text())["weight_map"]
        plain = all(
            Path(shard).name == shard and Path(shard).suffix != ".json"
            for shard in shard_of.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        plain = False
    if not plain or not shard_of:
        raise ValueError(f"{index} cannot be read as an index of weights; copy the file again.")
    names: dict[Where, list[str]] = {}
    for name, shard in shard_of.items():
        names.setdefault(index.parent / shard, []).append(name)
    for shard in names:
        if not shard.is_file():
            raise ValueError(
                f"{index} names {shard.name}, which is not there; copy that shard too."
            )
    return names


def header(file: Where) -> dict[str, Place]:
    """Where each tensor of a safetensors file lies; ValueError for a file that is damaged or cut short."""
    ranges = Ranges(file)
    size = ranges.size()
    start = ranges.read(0, min(8, size)).tobytes()
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if 8 + length > size:
        raise ValueError(
            f"{file} is cut short: its header does not fit into its {size} bytes; copy the file again."
        )
    try:
        entries = dict(json.loads(ranges.read(8, 8 + length).tobytes()))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{file} is not a safetensors file; its header cannot be read.") from None
    finally:
        ranges.close()
    entries.pop("__metadata__", None)
    places = {name: _place(file, name, entry, 8 + length, size) for name, entry in entries.items()}
    behind = 8 + length
    for name, place in sorted(places.items(), key=lambda item: item[1].offset):
        end = place.offset + place.bytes
        if end > size:
            message = f"tensor '{name}' {place.shape} needs {end} bytes and there are {size}"
            raise ValueError(f"{file} is cut short: {message}; copy the file again.")
        if place.offset < behind and place.bytes:
            raise ValueError(f"{file}: tensor '{name}' lies over another one; copy the file again.")
        behind = max(behind, end)
    return places


def _place(file: Where, name: str, entry: Any, data: int, limit: int) -> Place:
    """Where one tensor lies; `data` is the offset behind the header."""
    try:
        kind, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, first, last]
    except (KeyError, TypeError, ValueError):
        numbers = [None]
    wrong = any(type(number) is not int or number < 0 for number in numbers)
    # next to a size of 0 too
    if wrong or math.prod(number or 1 for number in numbers[:-2]) > LARGEST:
        raise ValueError(
            f"{file} is damaged: its header says of tensor '{name}' what cannot be; copy the file again."
        )
    if type(kind) is not str or kind not in DTYPES:
        raise ValueError(f"{file}: tensor '{name}' has type {kind}, which is not supported.")
    place = Place(file=file, dtype=DTYPES[kind], shape=shape, offset=data + first, limit=limit)
    if place.bytes != last - first:
        message = f"tensor '{name}' {shape} of type {kind} needs {place.bytes} bytes and has {last - first}"
        raise ValueError(f"{file} is damaged: {message}; copy the file again.")
    return place


def _load(file: Path) -> dict[str, Tensor]:
    tensors = _unpickled(file)
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{file} holds other things than tensors by name; give a file of weights.")
    return tensors


def _unpickled(file: Path) -> Any:
    try:
        # files from before torch 1.6 cannot be mapped; they fail at once with RuntimeError
        with contextlib.suppress(RuntimeError):
            return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        return torch.load(file, map_location="cpu", weights_only=True)
    # torch raises many kinds, from EOFError to RuntimeError, for a file that is cut short
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{file} cannot be read as a PyTorch checkpoint ({reason}); copy the file again."
        ) from None
