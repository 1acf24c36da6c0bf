"""Checkpoints as named pieces: any strategy at any number of ranks reads what another wrote, optimizer state too.

A folder `checkpoints/step-00001000` holds per rank a safetensors file, whose tensors are called NAME|START|KEY (from
element START on of the flattened parameter NAME; KEY is "weight" or a state tensor of the optimizer), and a JSON file
with shapes, scalars and data lanes; and manifest.json, written last, with sizes and checksums of all files.
"""

import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from molmo_ds import files, settings
from molmo_ds.config import RunConfig
from molmo_ds.files import Place, Remote
from molmo_ds.model import lora
from molmo_ds.weights import checksums
from molmo_ds.weights.checksums import Facts
from molmo_ds.weights.tensor_files import INDEX, TensorFolder

log = logging.getLogger(__name__)
FORMAT = 1
FROZEN = "a component that was frozen there and is trained now has no optimizer state: start a new run with init_from."
Count = Annotated[int, Field(strict=True, ge=0)]


class NewerFormatError(ValueError):
    """A checkpoint of a newer release than this."""


@dataclass(frozen=True)
class Format:
    """The part of manifest.json that no release changes."""

    format: Count


@dataclass(frozen=True)
class Manifest:
    """manifest.json."""

    format: Count
    step: Count
    ranks: Annotated[int, Field(strict=True, ge=1)]
    optimizer: str
    files: dict[str, Facts]


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


@plain_dataclass(frozen=True)
class Stored:
    """Where a piece lies."""

    file: Place
    start: int
    size: int
    keys: tuple[str, ...]
    stride: tuple[int, ...] = ()  # as in `runs`


@plain_dataclass(frozen=True)
class Found:
    """A whole checkpoint, opened; `pieces` and `shapes` by parameter name."""

    path: Place
    step: int
    optimizer: str
    pieces: dict[str, list[Stored]]
    shapes: dict[str, tuple[int, ...]]
    scalars: dict[str, float]
    data_state: dict[int, dict]
    handles: dict[Place, Any] = field(default_factory=dict)

    def piece(self, stored: Stored, name: str, key: str, first: int, last: int) -> Tensor:
        """Elements [first, last) of one piece, flat, as mapped memory."""
        if stored.file not in self.handles:
            self.handles[stored.file] = TensorFolder(stored.file)
        folder = self.handles[stored.file]
        where = f"{name}|{stored.start}|{key}"
        shape = folder.shape(where)
        if shape != [stored.size]:
            raise ValueError(
                f"{stored.file} holds {shape} of {name} at {stored.start}, not {stored.size}."
            )
        piece = folder.rows(where, first, last)
        if not piece.is_floating_point():
            raise ValueError(
                f"{stored.file} holds {key} of {name} as {piece.dtype}, which no save writes."
            )
        return piece

    def elements(self, name: str, key: str, first: int, last: int) -> Tensor:
        """Elements [first, last) of a flattened parameter (or state tensor), put together of its pieces.

        Raises ValueError unless each is in exactly one piece.
        """
        out = None
        filled = 0
        for stored in self.pieces[name]:
            if key not in stored.keys or stored.start >= last:
                continue
            for group in stretches(stored, first, last):
                end = group.here + group.count * group.length
                piece = self.piece(stored, name, key, group.here, end)
                # a save has no number that is not finite, so NaN marks what no piece has filled
                if out is None:
                    out = torch.full((last - first,), math.nan, dtype=piece.dtype)
                taken = piece.view(group.count, group.length)
                place = out.as_strided(taken.shape, (group.distance, 1), group.start - first)
                place.copy_(taken)
                filled += taken.numel()
        if filled != last - first or (out is not None and out.isnan().any()):
            raise ValueError(f"{self.path} has no whole {key} for {name}; {FROZEN}")
        return torch.empty(0) if out is None else out

    def whole(self, name: str, key: str = "weight") -> Tensor:
        """One parameter (or state tensor), put together."""
        return self.elements(name, key, 0, math.prod(self.shapes[name])).view(self.shapes[name])


def runs(start: int, size: int, stride: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(first element of the whole, first element of the piece, length) of each contiguous stretch of a piece.

    Args:
        stride: () for one stretch; (width, distance, phase) for a piece of a shard that holds `width` elements out of
            every `distance`, and which begins `phase` elements after the beginning of such a stretch.
    """
    if not stride:
        return [(start, 0, size)]
    width, distance, phase = stride
    out, done = [], 0
    while done < size:
        length = min(width - phase, size - done)
        out.append((start, done, length))
        start, done, phase = start + distance - phase, done + length, 0
    return out


@dataclass(frozen=True)
class Group:
    """`count` stretches of `length` elements each, one after the other in the piece, `distance` apart in the whole."""

    start: int  # of the first, in the whole
    here: int  # of the first, in the piece
    length: int
    count: int = 1
    distance: int = 1


def stretches(stored: Stored, first: int, last: int) -> Iterator[Group]:
    """The stretches of a piece that lie in [first, last) of the whole, like ones together: see `runs`."""
    end = stored.start + stored.size
    if not stored.stride:
        if max(stored.start, first) < min(end, last):
            start = max(stored.start, first)
            yield Group(start, start - stored.start, min(end, last) - start)
        return
    width, distance, phase = stored.stride
    origin = stored.start - phase
    total = -(-(stored.size + phase) // width)
    low = max(0, (first - origin - width) // distance + 1)
    high = min(total, -(-(last - origin) // distance))

    # the first and the last may be cut, by the piece's ends or by the range
    def part(number: int) -> Iterator[Group]:
        begin = origin + number * distance
        behind = number * width - phase
        start = max(begin, begin - behind, first) if number == 0 else max(begin, first)
        stop = min(begin + width, last, begin + stored.size - behind)
        if start < stop:
            yield Group(start, behind + start - begin, stop - start)

    for number in sorted({low, high - 1}) if low < high else ():
        yield from part(number)
    if high - low > 2:
        yield Group(
            origin + (low + 1) * distance,
            (low + 1) * width - phase,
            width,
            high - low - 2,
            distance,
        )


def read_manifest(path: Place) -> Manifest:
    """A checkpoint's manifest.json; ValueError in a few words if it is not as a save writes it."""
    try:
        data = (path / "manifest.json").read_bytes()
        _refuse_newer(path, data)
        made = TypeAdapter(Manifest).validate_json(data)
    except FileNotFoundError:
        raise ValueError("manifest.json is missing, so the save did not finish") from None
    except (ValidationError, OSError):
        raise ValueError("manifest.json cannot be read") from None
    if made.format != FORMAT:
        raise ValueError(f"its format is {made.format}, not {FORMAT}")
    ranks = range(min(made.ranks, len(made.files)))  # a damaged number may be of any size
    names = {f"rank-{rank:05d}.{kind}" for rank in ranks for kind in ("json", "safetensors")}
    if len(ranks) != made.ranks or made.files.keys() != names | {"config.yaml"}:
        raise ValueError(f"manifest.json does not name the files of {made.ranks} ranks")
    if path.name[5:].isdigit() and path.name != f"step-{made.step:08d}":
        raise ValueError(f"manifest.json is of step {made.step}")
    return made


def _refuse_newer(path: Place, manifest: bytes) -> None:
    """NewerFormatError where a manifest says that a newer release wrote it; its other fields may then be any."""
    try:
        number = TypeAdapter(Format).validate_json(manifest).format
    except ValidationError:
        return
    if number > FORMAT:
        raise NewerFormatError(
            f"{path} was saved by a newer molmo_ds (format {number}, and this release reads {FORMAT}); update it: pip"
            " install --upgrade molmo_ds."
        )


def what_is_wrong(path: Place, part: int = 0, parts: int = 1) -> str | None:
    """Why the checkpoint `path` is not whole, in a few words, or None; checks every `parts`-th file from `part` on.

    Raises NewerFormatError for one that is whole and that only a newer release reads: an older checkpoint in its place
    would lose what was learnt since.
    """
    try:
        manifest = read_manifest(path)
    except NewerFormatError:
        raise
    except ValueError as error:
        return str(error)
    return checksums.wrong_file(path, manifest.files, part, parts)


def steps(folder: str | Place) -> list[Place]:
    """The checkpoint folders below `folder`, newest first, whole or not; of a store those with a manifest.

    Of a web server, which cannot say what is there, the one that `latest` names.
    """
    folder = files.place(folder)
    if not isinstance(folder, Remote):
        found = [p for p in folder.glob("step-*") if p.is_dir() and p.name[5:].isdigit()]
    elif folder.listed:
        numbered = [p for p in folder.glob("step-*") if p.name[5:].isdigit()]
        found = [p for p in numbered if (p / "manifest.json").is_file()]
    else:
        latest = (folder / "latest").read_if_there()
        found = [] if latest is None else [folder / latest.strip()]
    return sorted(found, reverse=True)


def open_checkpoint(path: Place) -> Found:
    """Open a checkpoint that `what_is_wrong` found whole; ValueError if it contradicts itself all the same."""
    manifest = read_manifest(path)
    pieces: dict[str, list[Stored]] = {}
    shapes, scalars, lanes = {}, {}, {}
    names = [f"rank-{rank:05d}" for rank in range(manifest.ranks)]
    for name, text in zip(names, _texts([path / f"{name}.json" for name in names])):
        try:
            part = TypeAdapter(RankFile).validate_json(text)
        except ValidationError:
            raise ValueError(
                f"{path / name}.json is not as a save writes it; use another checkpoint."
            ) from None
        scalars |= part.scalars
        lanes |= part.lanes
        for piece in part.pieces:
            wide = piece.stride and not piece.stride[2] < piece.stride[0] <= piece.stride[1]
            if wide or shapes.setdefault(piece.name, piece.shape) != piece.shape:
                raise ValueError(
                    f"{path / name}.json contradicts itself in {piece.name}; use another checkpoint."
                )
            stored = Stored(
                path / f"{name}.safetensors", piece.start, piece.size, piece.keys, piece.stride
            )
            pieces.setdefault(piece.name, []).append(stored)
    return Found(path, manifest.step, manifest.optimizer, pieces, shapes, scalars, lanes)


def _texts(places: list[Place]) -> list[bytes]:
    """Small files, read at once where they are remote; an empty one for what cannot be read."""

    def read(place: Place) -> bytes:
        try:
            return place.read_bytes()
        except OSError:
            return b""

    with ThreadPoolExecutor(16 if isinstance(places[0], Remote) else 1) as pool:
        return list(pool.map(read, places))


def find(path: str | Place, part: int = 0, parts: int = 1) -> Place:
    """The checkpoint or weights folder that a user means by a run's folder, its checkpoints, one step or weights.

    Raises ValueError if there is none, or if none is whole; of the files every `parts`-th is read, from `part` on.
    """
    path = files.place(path)
    if (path / "manifest.json").is_file():
        candidates = [path]
    else:
        candidates = steps(path / "checkpoints") or steps(path)
    if not candidates and (path / "config.yaml").is_file() and _holds_tensors(path):
        checksums.check(path, part, parts)
        return path
    for candidate in candidates:
        wrong = what_is_wrong(candidate, part, parts)
        if wrong is None:
            return candidate
        log.warning("The checkpoint %s is damaged (%s).", candidate, wrong)
    reason = (
        "none of its checkpoints is whole"
        if candidates
        else "it holds neither checkpoints nor weights"
    )
    raise ValueError(
        f"{path} cannot be read: {reason}; give a run's folder, a checkpoint or a folder of weights."
    )


def _holds_tensors(path: Place) -> bool:
    return (path / INDEX).is_file() or any(path.glob("*.safetensors"))


def read_config(path: Place) -> RunConfig:
    """The configuration of a checkpoint, or of a folder of weights, which says only what the model is."""
    values = settings.read_values(path / "config.yaml")
    known = {
        name: value for name, value in values.items() if name in RunConfig.__dataclass_fields__
    }
    try:
        return settings.from_dict(RunConfig, known)
    except ValueError as error:
        raise ValueError(f"{path / 'config.yaml'}: {error}") from None


def read_full_state(path: str | Place) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor on the CPU) of a checkpoint or weights folder, one at a time, without launching ranks."""
    names, read = _reader(find(path))
    for name in names:
        yield name, read(name)


def _reader(path: Place) -> tuple[list[str], Callable[[str], Tensor]]:
    if (path / "manifest.json").is_file():
        found = open_checkpoint(path)
        return lora.merged(found.pieces, found.whole, read_config(path).lora.alpha)
    folder = TensorFolder(path)
    return folder.names(), folder.read
