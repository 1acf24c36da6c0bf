"""Checkpoints of format 1, which releases before index.parquet wrote: a JSON file beside each rank's tensors.

A tensor of `rank-00000.safetensors` is called NAME|START|KEY; checksums are of whole files.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from molmo_ds.files import Place, Remote
from molmo_ds.weights.pieces import Stored
from molmo_ds.weights.tensor_files import TensorFolder

Count = Annotated[int, Field(strict=True, ge=0)]


@dataclass(frozen=True)
class Piece:
    """What a rank's JSON file says of one piece of a parameter."""

    name: str
    shape: tuple[Count, ...]
    start: Count
    size: Count
    keys: tuple[str, ...]
    # as in `runs`
    stride: tuple[()] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Count] = ()


@dataclass(frozen=True)
class RankFile:
    """A rank's JSON file."""

    file: str
    pieces: tuple[Piece, ...]
    scalars: dict[str, float]
    lanes: dict[int, dict[str, Any]]


@plain_dataclass
class Listed:
    """The pieces of a checkpoint as objects; see `Pieces`."""

    folder: Place
    shapes: dict[str, tuple[int, ...]]
    scalars: dict[str, float]
    lanes: dict[int, dict]
    pieces: dict[str, list[Stored]]
    opened: dict[str, TensorFolder] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        """The keys of all pieces."""
        return {key for stored in self.pieces.values() for one in stored for key in one.keys}

    def of_parameter(self, name: str, first: int, last: int) -> list[Stored]:
        """The pieces that may hold elements of [first, last)."""
        return [stored for stored in self.pieces[name] if stored.start < last]

    def read(self, stored: Stored, name: str, key: str, first: int, last: int) -> Tensor:
        """Elements [first, last) of one piece, flat, as mapped memory."""
        file = self.folder / stored.file
        if stored.file not in self.opened:
            self.opened[stored.file] = TensorFolder(file)
        folder = self.opened[stored.file]
        where = f"{name}|{stored.start}|{key}"
        shape = folder.shape(where)
        if shape != [stored.size]:
            raise ValueError(
                f"{file} holds {shape} of {name} at {stored.start}, not {stored.size}."
            )
        piece = folder.rows(where, first, last)
        if not piece.is_floating_point():
            raise ValueError(
                f"{file} holds {key} of {name} as {piece.dtype}, which no save writes."
            )
        return piece


def names(ranks: int) -> set[str]:
    """The files of so many ranks."""
    return {f"rank-{rank:05d}.{kind}" for rank in range(ranks) for kind in ("json", "safetensors")}


def open_listed(path: Place, ranks: int) -> Listed:
    """Read the JSON files of all ranks; ValueError if they contradict each other."""
    pieces: dict[str, list[Stored]] = {}
    shapes, scalars, lanes = {}, {}, {}
    stems = [f"rank-{rank:05d}" for rank in range(ranks)]
    for stem, text in zip(stems, _texts([path / f"{stem}.json" for stem in stems])):
        try:
            part = TypeAdapter(RankFile).validate_json(text)
        except ValidationError:
            raise ValueError(
                f"{path / stem}.json is not as a save writes it; use another checkpoint."
            ) from None
        scalars |= part.scalars
        lanes |= part.lanes
        for piece in part.pieces:
            wide = piece.stride and not piece.stride[2] < piece.stride[0] <= piece.stride[1]
            if wide or shapes.setdefault(piece.name, piece.shape) != piece.shape:
                raise ValueError(
                    f"{path / stem}.json contradicts itself in {piece.name}; use another checkpoint."
                )
            stored = Stored(
                f"{stem}.safetensors", piece.start, piece.size, piece.keys, piece.stride
            )
            pieces.setdefault(piece.name, []).append(stored)
    return Listed(path, shapes, scalars, lanes, pieces)


def _texts(places: list[Place]) -> list[bytes]:
    """Small files, read at once where they are remote; an empty one for what cannot be read."""

    def read(place: Place) -> bytes:
        try:
            return place.read_bytes()
        except OSError:
            return b""

    with ThreadPoolExecutor(16 if isinstance(places[0], Remote) else 1) as pool:
        return list(pool.map(read, places))
