"""Sizes and checksums of a folder's files: a changed byte is found before its numbers are used."""

import io
import json
import zipfile
import zlib
from collections.abc import Container
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from molmo_ds import files
from molmo_ds.files import Place, Remote

# of a folder of weights; a checkpoint's manifest.json holds the same and more
NAME = "checksums.json"
BLOCKS = "checksums.npz"  # by SIZE/FILE of a file of tensors the checksums of its blocks, uint32
BLOCK = 1 << 14  # bytes; what is read in part is read to the ends of its blocks
SMALLEST = 1 << 12  # bytes of a block of a folder of weights
TABLE = 1 << 23  # checksums that every rank may hold of a folder of weights: 32 MiB
# what decides the numbers and the words of an answer
TENSORS = ".safetensors"
READ = (TENSORS, ".json", ".yaml", ".txt", ".model")


@dataclass(frozen=True)
class Facts:
    """What is known of one file."""

    bytes: Annotated[int, Field(strict=True, ge=0)]
    crc32: Annotated[int, Field(strict=True, ge=0)]
    # of a file that ends in so many checksums of its blocks (blocks.py): `crc32` is of these
    blocks: Annotated[int, Field(strict=True, ge=0)] | None = None


class Sums(NamedTuple):
    """The checksums of a file's blocks."""

    block: int  # bytes of each but the last
    values: np.ndarray  # uint32


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def count(size: int, block: int = BLOCK) -> int:
    """Blocks of so many bytes."""
    return -(-size // block)


def block_of(size: int) -> int:
    """Bytes of a block for weights of `size` bytes: as few as keep their checksums within TABLE.

    The fewer the weights, the smaller the pieces into which many ranks cut them, and the more a block's ends weigh.
    """
    block = SMALLEST
    while block < BLOCK and count(size, block) > TABLE:
        block *= 2
    return block


def sums(data: np.ndarray | bytes, block: int = BLOCK) -> np.ndarray:
    """The checksum of every block, uint32, of bytes that begin with a block."""
    view = memoryview(data)
    found = [zlib.crc32(view[begin : begin + block]) for begin in range(0, len(data), block)]
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
    block = block_of(sum(path.stat().st_size for path in files if path.suffix == TENSORS))
    noted = {}
    tables = {}
    for path in files:
        facts, found = _noted(path, block)
        noted[path.relative_to(folder).as_posix()] = facts
        if path.suffix == TENSORS:
            tables[path.name] = Sums(block, found)
    write_blocks(folder, tables)
    (folder / NAME).write_text(json.dumps({"files": noted}, indent=1) + "\n")


def _noted(path: Path, block: int) -> tuple[dict[str, int], np.ndarray]:
    """A file's facts, and the checksums of its blocks, by reading it once."""
    value = 0
    found = [np.empty(0, "<u4")]
    with open(path, "rb") as stream:
        while data := stream.read(64 * BLOCK):
            value = zlib.crc32(data, value)
            found.append(sums(data, block))
    return {"bytes": path.stat().st_size, "crc32": value}, np.concatenate(found)


def write_blocks(folder: Path, tables: dict[str, Sums]) -> None:
    """Write down the checksums of the blocks of files of tensors, by name."""
    named = {f"{table.block}/{name}": table.values for name, table in tables.items()}
    np.savez(folder / BLOCKS, **named)


def read_blocks(folder: Place) -> dict[str, Sums]:
    """The checksums of the blocks of every file of tensors; none in a folder of others, or where NAME was deleted.

    Before 2026-11-30 blocks were of BLOCK bytes and a table was named by its file alone.
    """
    file = folder / BLOCKS
    if not file.is_file() or not (folder / NAME).is_file():
        return {}
    tables = {}
    try:
        with np.load(io.BytesIO(file.read_bytes())) as stored:
            for key, values in stored.items():
                size, _, name = key.rpartition("/")
                block = int(size or BLOCK)
                if block < 1:
                    raise ValueError(f"blocks of {block} bytes")
                tables[name] = Sums(block, values)
    except (ValueError, zipfile.BadZipFile):
        raise ValueError(f"{file} cannot be read; copy the folder again.") from None
    return tables


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
            and file.suffix == TENSORS
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
