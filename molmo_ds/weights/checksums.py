"""Sizes and checksums of a folder's files: a changed byte is found before its numbers are used."""

import io
import json
import zipfile
import zlib
from collections.abc import Container
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from molmo_ds import files
from molmo_ds.files import Place, Remote

# of a folder of weights; a checkpoint's manifest.json holds the same and more
NAME = "checksums.json"
BLOCKS = "checksums.npz"  # by name of a file of tensors the checksums of its blocks, uint32
BLOCK = 1 << 14  # bytes; what is read in part is read to the ends of its blocks
# what decides the numbers and the words of an answer
READ = (".safetensors", ".json", ".yaml", ".txt", ".model")


@dataclass(frozen=True)
class Facts:
    """What is known of one file."""

    bytes: Annotated[int, Field(strict=True, ge=0)]
    crc32: Annotated[int, Field(strict=True, ge=0)]
    # of a file that ends in so many checksums of its blocks (blocks.py): `crc32` is of these
    blocks: Annotated[int, Field(strict=True, ge=0)] | None = None


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def count(size: int) -> int:
    """Blocks of so many bytes."""
    return -(-size // BLOCK)


def sums(data: np.ndarray | bytes) -> np.ndarray:
    """The checksum of every block, uint32, of bytes that begin with a block."""
    view = memoryview(data)
    found = [zlib.crc32(view[begin : begin + BLOCK]) for begin in range(0, len(data), BLOCK)]
    return np.array(found, "<u4")


def facts_of(path: Path) -> dict[str, int]:
    """Size and checksum of a file, as they are written down."""
    return {"bytes": path.stat().st_size, "crc32": checksum(path)}


def facts_of_bytes(data: bytes) -> dict[str, int]:
    """The same of what a file will hold."""
    return {"bytes": len(data), "crc32": zlib.crc32(data)}


def write(folder: Path) -> None:
    """Note size and checksum of every file of a new folder, and of the folders inside it, that a reader needs."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in READ)
    noted = {}
    blocks = {}
    for path in files:
        facts, found = _noted(path)
        noted[path.relative_to(folder).as_posix()] = facts
        if path.suffix == ".safetensors":
            blocks[path.name] = found
    np.savez(folder / BLOCKS, **blocks)
    (folder / NAME).write_text(json.dumps({"files": noted}, indent=1) + "\n")


def _noted(path: Path) -> tuple[dict[str, int], np.ndarray]:
    """A file's facts, and the checksums of its blocks, by reading it once."""
    value = 0
    found = [np.empty(0, "<u4")]
    with open(path, "rb") as stream:
        while data := stream.read(64 * BLOCK):
            value = zlib.crc32(data, value)
            found.append(sums(data))
    return {"bytes": path.stat().st_size, "crc32": value}, np.concatenate(found)


def read_blocks(folder: Place) -> dict[str, np.ndarray]:
    """The checksums of the blocks of every file of tensors; none in a folder of others, or where NAME was deleted."""
    file = folder / BLOCKS
    if not file.is_file() or not (folder / NAME).is_file():
        return {}
    try:
        with np.load(io.BytesIO(file.read_bytes())) as stored:
            return dict(stored)
    except (ValueError, zipfile.BadZipFile):
        raise ValueError(f"{file} cannot be read; copy the folder again.") from None


def wrong_file(
    folder: Place,
    noted: dict[str, Facts],
    part: int = 0,
    parts: int = 1,
    later: Container[str] = (),
) -> str | None:
    """What is wrong with the first file that differs, in a few words; every `parts`-th is read, from `part` on.

    Tensor files that are verified while they are read (blocks.py, and those named in `later`) are compared by their
    size alone, and so are those of a remote folder, whose store keeps checksums of its own.
    """
    for name, facts in sorted(noted.items())[part::parts]:
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        size = files.size(str(file))
        if size != facts.bytes:
            return f"{name} has {size} bytes instead of {facts.bytes}"
        if (
            facts.blocks is not None
            or name in later
            or isinstance(file, Remote)
            and file.suffix == ".safetensors"
        ):
            continue
        found = zlib.crc32(file.read_bytes()) if isinstance(file, Remote) else checksum(file)
        if found != facts.crc32:
            return f"the checksum of {name} is wrong"
    return None


def check(folder: Place, part: int = 0, parts: int = 1, later: Container[str] = ()) -> None:
    """ValueError if a file of a folder of weights is not as it was written; arguments as of `wrong_file`.

    Folders of others have no checksums and pass: of them only the structure can be checked.
    """
    file = folder / NAME
    if not file.is_file():
        return
    try:
        noted = TypeAdapter(dict[str, dict[str, Facts]]).validate_json(file.read_bytes())["files"]
    except (ValidationError, KeyError):
        raise ValueError(f"{file} cannot be read; copy the folder again.") from None
    wrong = wrong_file(folder, noted, part, parts, later)
    if wrong is not None:
        advice = f"copy the folder again, or delete {NAME} if you changed the file yourself"
        raise ValueError(f"{folder} is damaged: {wrong}; {advice}.")
