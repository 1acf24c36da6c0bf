"""Sizes and checksums of a folder's files: a changed byte is found before its numbers are used."""

import json
import zlib
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from molmo_ds import files
from molmo_ds.files import Place, Remote

# of a folder of weights; a checkpoint's manifest.json holds the same and more
NAME = "checksums.json"
# what decides the numbers and the words of an answer
READ = (".safetensors", ".json", ".yaml", ".txt", ".model")


@dataclass(frozen=True)
class Facts:
    """What is known of one file."""

    bytes: Annotated[int, Field(strict=True, ge=0)]
    crc32: Annotated[int, Field(strict=True, ge=0)]


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def facts_of(path: Path) -> dict[str, int]:
    """Size and checksum of a file, as they are written down."""
    return {"bytes": path.stat().st_size, "crc32": checksum(path)}


def write(folder: Path) -> None:
    """Note size and checksum of every file of a new folder, and of the folders inside it, that a reader needs."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in READ)
    noted = {path.relative_to(folder).as_posix(): facts_of(path) for path in files}
    (folder / NAME).write_text(json.dumps({"files": noted}, indent=1) + "\n")


def wrong_file(folder: Place, noted: dict[str, Facts], part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with the first file that differs, in a few words; every `parts`-th is read, from `part` on.

    Of a remote folder the tensor files are compared by their size alone: they are read later, in parts, by those who
    needs them, and the store keeps checksums of its own.
    """
    for name, facts in sorted(noted.items())[part::parts]:
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        size = files.size(str(file))
        if size != facts.bytes:
            return f"{name} has {size} bytes instead of {facts.bytes}"
        if isinstance(file, Remote) and file.suffix == ".safetensors":
            continue
        found = zlib.crc32(file.read_bytes()) if isinstance(file, Remote) else checksum(file)
        if found != facts.crc32:
            return f"the checksum of {name} is wrong"
    return None


def check(folder: Place, part: int = 0, parts: int = 1) -> None:
    """ValueError if a file of a folder of weights is not as it was written.

    Folders of others have no checksums and pass: of them only the structure can be checked.
    """
    file = folder / NAME
    if not file.is_file():
        return
    try:
        noted = TypeAdapter(dict[str, dict[str, Facts]]).validate_json(file.read_bytes())["files"]
    except (ValidationError, KeyError):
        raise ValueError(f"{file} cannot be read; copy the folder again.") from None
    wrong = wrong_file(folder, noted, part, parts)
    if wrong is not None:
        advice = f"copy the folder again, or delete {NAME} if you changed the file yourself"
        raise ValueError(f"{folder} is damaged: {wrong}; {advice}.")
