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
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
HEADER = 1 << 18  # bytes kept free for a shard's header, which is only known once the shard is full
SHARD = 5 * 10**9  # bytes
INDEX = "model.safetensors.index.json"


class TensorFolder:
    """The tensors of a folder (or of one file) by name; nothing but names and shapes is held.

    Raises ValueError in one sentence for a folder without weights, a file that is cut short, a name that is not there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._entries: dict[str, tuple[Path, list[int]]] = {}  # name -> file, shape
        self._open: tuple[Path, dict[str, Tensor]] | None = None  # the .bin file read last
        for file in _files(self.path):
            self._entries |= {name: (file, shape) for name, shape in _shapes(file).items()}

    def names(self) -> list[str]:
        """All names, in the order of the files."""
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> list[int]:
        """A tensor's shape, without reading it."""
        return self._entries[name][1]

    def read(self, name: str) -> Tensor:
        """One tensor, as mapped memory of its file (copied on write)."""
        if name not in self._entries:
            raise ValueError(f"{self.path} has no tensor '{name}'.")
        file = self._entries[name][0]
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:  # opened for each, or all that was read would stay in memory
                return tensors.get_tensor(name)
        if self._open is None or self._open[0] != file:
            self._open = (file, _load(file))
        return self._open[1][name]


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


def _shapes(file: Path) -> dict[str, list[int]]:
    if file.suffix != ".safetensors":
        return {name: list(tensor.shape) for name, tensor in _load(file).items()}
    try:
        with safe_open(file, "pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.offset_keys()}
    except SafetensorError as error:
        reason = "is not a safetensors file" if "JSON" in str(error) else "is cut short: its header asks for more bytes"
        raise ValueError(f"{file} {reason} ({error}); copy the file again.") from None
    for name, tensor in slices.items():
        if tensor.get_dtype() not in NAMES.values():
            raise ValueError(f"{file}: tensor '{name}' has type {tensor.get_dtype()}, which is not supported.")
    return {name: tensor.get_shape() for name, tensor in slices.items()}


def _load(file: Path) -> dict[str, Tensor]:
    try:
        # files from before torch 1.6 cannot be mapped; they fail at once with RuntimeError
        with contextlib.suppress(RuntimeError):
            return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, from EOFError to RuntimeError, for a file that is cut short
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} cannot be read as a PyTorch checkpoint ({reason}); copy the file again.") from None
