"""Checkpoints as named pieces: any strategy at any number of ranks reads what another wrote, optimizer state too.

A folder `checkpoints/step-00001000` holds per rank a safetensors file, whose tensors are called NAME|START|KEY (from
element START on of the flattened parameter NAME; KEY is "weight" or a state tensor of the optimizer), and a JSON file
with shapes, scalars and data lanes; and manifest.json, written last, with sizes and checksums of all files.
"""

import json
import logging
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from molmo_ds.config import RunConfig
from molmo_ds.model import init, lora
from molmo_ds.weights.tensor_files import TensorFolder

log = logging.getLogger(__name__)
FORMAT = 1
FROZEN = "a component that was frozen there and is trained now has no optimizer state: start a new run with init_from."


@dataclass(frozen=True)
class Stored:
    """The place of a piece."""

    file: Path
    start: int
    size: int
    keys: tuple[str, ...]
    stride: tuple[int, ...] = ()  # as in `runs`


@dataclass(frozen=True)
class Found:
    """A whole checkpoint, opened; `pieces` and `shapes` by parameter name."""

    path: Path
    step: int
    optimizer: str
    pieces: dict[str, list[Stored]]
    shapes: dict[str, tuple[int, ...]]
    scalars: dict[str, float]
    data_state: dict[int, dict]
    handles: dict[Path, Any] = field(default_factory=dict)

    def read(self, stored: Stored, name: str, key: str, first: int, last: int) -> Tensor:
        """Elements [first, last) of the whole parameter, which this piece (without stride) contains."""
        if stored.file not in self.handles:
            self.handles[stored.file] = safe_open(stored.file, "pt")
        piece = self.handles[stored.file].get_slice(f"{name}|{stored.start}|{key}")
        return piece[first - stored.start : last - stored.start]

    def whole(self, name: str, key: str = "weight") -> Tensor:
        """One parameter (or state tensor), put together."""
        parts = [s for s in self.pieces[name] if key in s.keys]
        pieces = [self.read(s, name, key, s.start, s.start + s.size) for s in parts]
        if sum(s.size for s in parts) != math.prod(self.shapes[name]):
            raise ValueError(f"{self.path} has no whole {key} for {name}; {FROZEN}")
        flat = torch.empty(self.shapes[name], dtype=pieces[0].dtype)
        for stored, piece in zip(parts, pieces):
            for first, here, length in runs(stored.start, stored.size, stored.stride):
                flat.view(-1)[first : first + length] = piece[here : here + length]
        return flat


def runs(start: int, size: int, stride: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(first element of the whole, first element of the piece, length) of each contiguous stretch of a piece.

    Args:
        stride: () for one stretch; (width, distance, phase) for a piece of a shard that holds `width` elements out of
            every `distance`, and which begins `phase` elements after the beginning of such a stretch.
    """
    if not stride:
        return [(start, 0, size)]
    width, distance, phase = stride
    out = []
    done = 0
    while done < size:
        length = min(width - phase, size - done)
        out.append((start, done, length))
        start = start + distance - phase
        done = done + length
        phase = 0
    return out


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def what_is_wrong(path: Path, part: int = 0, parts: int = 1) -> str | None:
    """Why the checkpoint `path` is not whole, in a few words, or None; checks every `parts`-th file from `part` on."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files = sorted(manifest["files"].items())
    except FileNotFoundError:
        return "manifest.json is missing, so the save did not finish"
    except (ValueError, KeyError, OSError):
        return "manifest.json cannot be read"
    if manifest.get("format") != FORMAT:
        return f"its format is {manifest.get('format')}, not {FORMAT}"
    for name, facts in files[part::parts]:
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {facts['bytes']}"
        if checksum(file) != facts["crc32"]:
            return f"the checksum of {name} is wrong"
    return None


def steps(folder: str | Path) -> list[Path]:
    """The checkpoint folders below `folder`, newest first, whole or not."""
    return sorted((p for p in Path(folder).glob("step-*") if p.is_dir() and p.name[5:].isdigit()), reverse=True)


def open_checkpoint(path: Path) -> Found:
    """Open a checkpoint that `what_is_wrong` found whole."""
    manifest = json.loads((path / "manifest.json").read_text())
    pieces: dict[str, list[Stored]] = {}
    shapes = {}
    scalars = {}
    lanes = {}
    for name in manifest["files"]:
        if not (name.startswith("rank-") and name.endswith(".json")):
            continue
        part = json.loads((path / name).read_text())
        scalars |= part["scalars"]
        lanes |= {int(lane): state for lane, state in part["lanes"].items()}
        for piece in part["pieces"]:
            stride = tuple(piece.get("stride", ()))
            stored = Stored(path / part["file"], piece["start"], piece["size"], tuple(piece["keys"]), stride)
            pieces.setdefault(piece["name"], []).append(stored)
            shapes[piece["name"]] = tuple(piece["shape"])
    return Found(path, manifest["step"], manifest["optimizer"], pieces, shapes, scalars, lanes)


def find(path: str | Path) -> Path:
    """The checkpoint or weights folder that a user means by a run's folder, its checkpoints, one step or weights.

    Raises ValueError if there is none, or if none is whole.
    """
    path = Path(path)
    if (path / "manifest.json").is_file():
        candidates = [path]
    else:
        candidates = steps(path / "checkpoints") or steps(path)
    if not candidates and (path / "config.yaml").is_file() and any(path.glob("*.safetensors")):
        return path
    for candidate in candidates:
        wrong = what_is_wrong(candidate)
        if wrong is None:
            return candidate
        log.warning("The checkpoint %s is damaged (%s).", candidate, wrong)
    reason = "none of its checkpoints is whole" if candidates else "it holds neither checkpoints nor weights"
    raise ValueError(f"{path} cannot be read: {reason}; give a run's folder, a checkpoint or a folder of weights.")


def read_full_state(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor on the CPU) of a checkpoint or weights folder, one at a time, without launching ranks."""
    names, read = _reader(find(path))
    for name in names:
        yield name, read(name)


def first_weights(config: RunConfig) -> Callable[[str, tuple[int, ...]], Tensor]:
    """(name, shape) -> the whole tensor a run starts with: of `init_from`, or a function of seed and name."""

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        return init.initial_parameter(config.model, name, shape, config.seed)

    if config.init_from is None:
        return draw
    path = find(config.init_from)
    names, read = _reader(path)

    def look_up(name: str, shape: tuple[int, ...]) -> Tensor:
        if ".lora_" in name:
            return draw(name, shape)
        if name not in names:
            raise ValueError(f"init_from={config.init_from} has no {name}; it belongs to another architecture.")
        tensor = read(name)
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(
                f"init_from={config.init_from}: {name} has shape {tuple(tensor.shape)}, and the model has {shape}."
            )
        return tensor

    return look_up


def _reader(path: Path) -> tuple[list[str], Callable[[str], Tensor]]:
    if (path / "manifest.json").is_file():
        import yaml

        found = open_checkpoint(path)
        alpha = yaml.safe_load((path / "config.yaml").read_text()).get("lora", {}).get("alpha", 0.0)
        return lora.merged(found.pieces, found.whole, alpha)
    folder = TensorFolder(path)
    return folder.names(), folder.read
