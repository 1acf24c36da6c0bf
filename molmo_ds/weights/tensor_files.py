"""Folders of weights: read and written one tensor at a time, so that a 72B model needs the memory of one matrix.

Reading takes .safetensors and .bin, in one file or in shards with an index. Writing makes safetensors shards, indexed.
"""

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
HEADER = 1 << 18  # bytes kept free for a shard's header, which is only known once the shard is full
SHARD = 5 * 10**9  # bytes
INDEX = "model.safetensors.index.json"


class TensorFolder:
    """The tensors of a folder (or of one file) by name; nothing but the headers is held.

    Raises ValueError in one sentence for a folder without weights, a file that is cut short, a name that is not there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._safe: dict[str, tuple[Path, str, list[int], int]] = {}  # name -> file, dtype, shape, offset in the file
        self._bin: dict[str, Path] = {}
        self._open: tuple[Path, dict[str, Tensor]] | None = None
        for file in _files(self.path):
            if file.suffix == ".safetensors":
                self._safe |= _header(file)
            else:
                self._bin |= dict.fromkeys(_load(file), file)

    def names(self) -> list[str]:
        """All names, in the order of the files."""
        return [*self._safe, *self._bin]

    def __contains__(self, name: str) -> bool:
        return name in self._safe or name in self._bin

    def shape(self, name: str) -> list[int]:
        """A tensor's shape, without reading it from a safetensors file."""
        return list(self._safe[name][2]) if name in self._safe else list(self.read(name).shape)

    def read(self, name: str) -> Tensor:
        """One tensor; of a safetensors file an own copy, of a .bin file mapped memory."""
        if name in self._bin:
            file = self._bin[name]
            if self._open is None or self._open[0] != file:
                self._open = (file, _load(file))
            return self._open[1][name]
        if name not in self._safe:
            raise ValueError(f"{self.path} has no tensor '{name}'.")
        file, dtype, shape, offset = self._safe[name]
        tensor = torch.empty(shape, dtype=DTYPES[dtype])
        if tensor.numel():
            with open(file, "rb", buffering=0) as stream:
                stream.seek(offset)
                view = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
                done = 0
                while done < len(view):
                    count = stream.readinto(view[done : done + (1 << 30)])
                    if not count:
                        raise ValueError(f"{file} ends inside tensor '{name}'; copy the file again.")
                    done += count
        return tensor


def write_tensors(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int = SHARD,
    dtype: torch.dtype | None = None,
    total: int | None = None,
) -> int:
    """Write model-XXXXX-of-XXXXX.safetensors and their index into `folder`, holding one tensor at a time.

    Args:
        tensors: (name, tensor); the tensors may be on any device.
        shard_bytes: a shard is closed before it grows past this (one bigger tensor gets a shard of its own).
        dtype: what floating-point tensors are cast to; None keeps theirs.
        total: number of tensors, for the progress bar.

    Returns:
        The number of bytes of all tensors.
    """
    where: dict[str, int] = {}
    shards: list[Path] = []
    size, writer, bar = 0, None, tqdm(desc="tensors", total=total, leave=False)
    try:
        for name, tensor in tensors:
            assert name not in where, f"tensor '{name}' comes twice"
            cast = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            tensor = tensor.detach().to("cpu", cast).contiguous()
            if writer is None or not writer.fits(name, tensor, shard_bytes):
                if writer is not None:
                    writer.close()
                shards.append(folder / f"model-{len(shards) + 1:05d}.part")
                writer = _Shard(shards[-1])
            writer.add(name, tensor)
            where[name] = len(shards)
            size += tensor.nbytes
            bar.update()
            del tensor  # or it would live while the next one is made
    finally:
        bar.close()
        if writer is not None:
            writer.close()
    final = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for part, name in zip(shards, final):
        os.replace(part, folder / name)
    index = {"metadata": {"total_size": size}, "weight_map": {name: final[i - 1] for name, i in where.items()}}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return size


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder under a temporary name that becomes `path` when the block ends and vanishes when it fails.

    Raises ValueError if `path` exists and is not an empty folder.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists already; give the name of a new folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Shard:
    # safetensors is [8 bytes: header length][JSON header, padded with blanks][data]: the header's room is kept free
    def __init__(self, path: Path) -> None:
        self.entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        self.offset, self.text = 0, 100
        self.file = open(path, "wb")  # noqa: SIM115 (closed by close)
        self.file.seek(HEADER)

    def fits(self, name: str, tensor: Tensor, limit: int) -> bool:
        full = self.offset + tensor.nbytes > limit and self.offset
        return not full and self.text + len(json.dumps(name)) + 160 < HEADER - 8

    def add(self, name: str, tensor: Tensor) -> None:
        end = self.offset + tensor.nbytes
        entry = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [self.offset, end]}
        self.entries[name] = entry
        self.text += len(json.dumps({name: entry}))
        if tensor.numel():
            self.file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
        self.offset = end

    def close(self) -> None:
        if self.file.closed:
            return
        header = json.dumps(self.entries).encode()
        assert len(header) <= HEADER - 8
        self.file.seek(0)
        self.file.write(struct.pack("<Q", HEADER - 8) + header.ljust(HEADER - 8))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for name in (INDEX, "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin", "model.pt"):
        file = path / name
        if file.is_file() and file.suffix == ".json":
            shards = [path / name for name in dict.fromkeys(json.loads(file.read_text())["weight_map"].values())]
            for shard in shards:
                if not shard.is_file():
                    raise ValueError(f"{file} names {shard.name}, which is not there; copy that shard too.")
            return shards
        if file.is_file():
            return [file]
    raise ValueError(f"{path} holds no weights: no {INDEX}, model.safetensors, pytorch_model.bin or model.pt.")


def _header(file: Path) -> dict[str, tuple[Path, str, list[int], int]]:
    size = file.stat().st_size
    with open(file, "rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise ValueError(
                f"{file} is cut short: its header does not fit into its {size} bytes; copy the file again."
            )
        try:
            entries = json.loads(stream.read(length))
        except ValueError:
            raise ValueError(f"{file} is not a safetensors file; its header cannot be read.") from None
    entries.pop("__metadata__", None)
    out = {}
    for name, entry in entries.items():
        first, last = entry["data_offsets"]
        if 8 + length + last > size:
            message = f"tensor '{name}' {entry['shape']} needs {8 + length + last} bytes and there are {size}"
            raise ValueError(f"{file} is cut short: {message}; copy the file again.")
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{file}: tensor '{name}' has type {entry['dtype']}, which is not supported.")
        out[name] = (file, entry["dtype"], entry["shape"], 8 + length + first)
    return out


def _load(file: Path) -> dict[str, Tensor]:
    try:
        # files from before torch 1.6 cannot be mapped; they fail at once with RuntimeError
        with contextlib.suppress(RuntimeError):
            return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, from EOFError to RuntimeError, for a file that is cut short
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} cannot be read as a PyTorch checkpoint ({reason}); copy the file again.") from None
