"""Folders of weights written tensor by tensor: safetensors shards and their index, which appear whole or not at all."""

import contextlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from molmo_ds import files
from molmo_ds.files import Place, Remote
from molmo_ds.stores.publish import publish
from molmo_ds.weights import checksums
from molmo_ds.weights.tensor_files import DTYPES, INDEX

NAMES = {dtype: name for name, dtype in DTYPES.items()}
HEADER = 1 << 18  # bytes kept free for a shard's header, which is only known once the shard is full
SHARD = 5 * 10**9  # bytes


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
    index = {
        "metadata": {"total_size": size},
        "weight_map": {name: final[i - 1] for name, i in where.items()},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return size


@contextlib.contextmanager
def new_folder(path: str | Place) -> Iterator[Path]:
    """A folder with a temporary name: it becomes `path` at the end of the block, or is removed on an error.

    A URL is written from a folder below TMPDIR. Raises ValueError if `path` exists and is not an empty folder, or is of
    a store that can only be read.
    """
    path = files.place(path)
    if isinstance(path, Remote):
        with _new_remote(path) as temporary:
            yield temporary
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists already; give the name of a new folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        checksums.write(temporary)
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _new_remote(path: Remote) -> Iterator[Path]:
    files.refuse_read_only(path.url)
    if path.children():
        raise ValueError(f"{path} exists already; give the name of a new folder.")
    with tempfile.TemporaryDirectory(prefix="molmo_ds-") as temporary:
        yield Path(temporary)
        checksums.write(Path(temporary))
        publish(Path(temporary), path)


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
        entry = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self.offset, end],
        }
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
