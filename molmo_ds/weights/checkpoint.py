"""Checkpoints as named pieces: any strategy at any number of ranks reads what another wrote, optimizer state too.

A folder `checkpoints/step-00001000` holds per rank a safetensors file (blocks.py), whose tensors are called
NAME|START|KEY: from element START on of the flattened parameter NAME; KEY is "weight" or a state tensor of the
optimizer. Beside them lie index.parquet, which says where each piece is, lanes.parquet with the state of the data, and
manifest.json, written last, with sizes and checksums of all files.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Annotated, Protocol

import torch
from pyarrow import ArrowException
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from molmo_ds import files, settings
from molmo_ds.config import RunConfig
from molmo_ds.files import Place, Remote
from molmo_ds.model import lora
from molmo_ds.weights import checksums, format_1
from molmo_ds.weights.blocks import Damaged
from molmo_ds.weights.checksums import Facts
from molmo_ds.weights.format_1 import Count, Listed
from molmo_ds.weights.index import INDEX as INDEX_FILE
from molmo_ds.weights.index import LANES, Index, checked, rank_file, read_lanes
from molmo_ds.weights.pieces import Stored, stretches
from molmo_ds.weights.released_config import FAMILY
from molmo_ds.weights.tensor_files import INDEX, TensorFolder

log = logging.getLogger(__name__)
FORMAT = 2
LOCAL = 1 << 18  # elements of a piece that are read at once: whole blocks
REMOTE = 1 << 24  # the same of a store, which answers several requests as fast as one
FROZEN = "a component that was frozen there and is trained now has no optimizer state: start a new run with init_from."


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


class Pieces(Protocol):
    """The pieces of a checkpoint of either format (index.py, format_1.py)."""

    shapes: dict[str, tuple[int, ...]]
    scalars: dict[str, float]
    keys: set[str]

    def of_parameter(self, name: str, first: int, last: int) -> list[Stored]:
        """Those that may hold elements of [first, last)."""

    def read(self, stored: Stored, name: str, key: str, first: int, last: int) -> Tensor:
        """Elements [first, last) of one of them."""


@plain_dataclass
class Found:
    """A whole checkpoint, opened; it can be pickled until something is read of it."""

    path: Place
    manifest: Manifest
    pieces: Pieces

    @property
    def step(self) -> int:
        """The step after which it was saved."""
        return self.manifest.step

    @property
    def optimizer(self) -> str:
        """optim.name of the run that saved it."""
        return self.manifest.optimizer

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter."""
        return self.pieces.shapes

    @property
    def scalars(self) -> dict[str, float]:
        """State of the optimizer that is one number for all parameters."""
        return self.pieces.scalars

    @cached_property
    def lanes(self) -> dict[int, dict]:
        """What every lane of the data remembers."""
        if isinstance(self.pieces, Listed):
            return self.pieces.lanes
        return read_lanes(checked(self.path, LANES, self.manifest.files[LANES]))

    def file(self, name: str) -> Place:
        """A file that holds some of a parameter."""
        return self.path / self.pieces.of_parameter(name, 0, 1)[0].file

    def elements(self, name: str, key: str, first: int, last: int) -> Tensor:
        """Elements [first, last) of a flattened parameter (or state tensor), put together of its pieces.

        Raises ValueError unless each is in exactly one piece, and Damaged where they are not as they were written.
        """
        out = None
        filled = 0
        most = REMOTE if isinstance(self.path, Remote) else LOCAL
        pieces = self.pieces.of_parameter(name, first, last)
        for stored in pieces:
            if key not in stored.keys:
                continue
            inside = stored.start <= first and last <= stored.start + stored.size
            if len(pieces) == 1 and inside and not stored.stride:
                return self.pieces.read(
                    stored, name, key, first - stored.start, last - stored.start
                )
            parts = stretches(stored.start, stored.size, stored.stride, first, last)
            for group in chain.from_iterable(part.cut(most) for part in parts):
                piece = self.pieces.read(stored, name, key, group.here, group.end)
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
    if not 1 <= made.format <= FORMAT:
        raise ValueError(f"its format is {made.format}, not {FORMAT}")
    ranks = min(made.ranks, len(made.files))  # a damaged number may be of any size
    if made.format == 1:
        names = format_1.names(ranks)
    else:
        names = {INDEX_FILE, LANES, *map(rank_file, range(ranks))}
    if ranks != made.ranks or made.files.keys() != names | {"config.yaml"}:
        raise ValueError(f"manifest.json does not name the files of {made.ranks} ranks")
    if made.format > 1 and any(made.files[rank_file(rank)].blocks is None for rank in range(ranks)):
        raise ValueError("manifest.json does not count the checksums of a rank's file")
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

    Of tensors the sizes alone are compared, except in format 1: their checksums are when they are read.
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


def verify(path: Place) -> str | None:
    """As `what_is_wrong`, with every byte of the tensors read: for a person who asks, as it takes long."""
    wrong = what_is_wrong(path)
    if wrong is not None or read_manifest(path).format == 1:
        return wrong  # which has read the tensors of format 1
    try:
        pieces = open_checkpoint(path).pieces
        assert isinstance(pieces, Index)
        pieces.verify()
    except Damaged as error:
        return error.reason
    return None


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
    if manifest.format == 1:
        return Found(path, manifest, format_1.open_listed(path, manifest.ranks))
    data = checked(path, INDEX_FILE, manifest.files[INDEX_FILE])
    try:
        index = Index.of(path, manifest.files, data)
    except (LookupError, TypeError, ValueError, OSError, ArrowException):
        raise ValueError(
            f"{path / INDEX_FILE} is not as a save writes it; use another checkpoint."
        ) from None
    return Found(path, manifest, index)


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
    """The configuration of a checkpoint, or of a folder of weights, which says what the model is and how it is asked.

    One that does not say how is asked as the released models of its family.
    """
    values = settings.read_values(path / "config.yaml")
    known = {
        name: value for name, value in values.items() if name in RunConfig.__dataclass_fields__
    }
    try:
        config = settings.from_dict(RunConfig, known)
    except ValueError as error:
        raise ValueError(f"{path / 'config.yaml'}: {error}") from None
    if "data" in known:
        return config
    return replace(config, data=replace(config.data, prompts=FAMILY[config.model.family]))


def read_full_state(path: str | Place) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor on the CPU) of a checkpoint or weights folder, one at a time, without launching ranks."""
    names, read = _reader(find(path))
    for name in names:
        yield name, read(name)


def _reader(path: Place) -> tuple[list[str], Callable[[str], Tensor]]:
    if (path / "manifest.json").is_file():
        found = open_checkpoint(path)
        return lora.merged(found.shapes, found.whole, read_config(path).lora.alpha)
    folder = TensorFolder(path)
    return folder.names(), folder.read
