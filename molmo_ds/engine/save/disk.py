"""A checkpoint on a disk that all ranks share: it grows under a temporary name, and one rename makes it exist."""

import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from molmo_ds.engine.launch import World
from molmo_ds.files import Place, sync

PARTS = "parts"  # the folder of what rank 0 merges into the index
LEFT = ".left-"  # begins the name of what is to be deleted in the background


class OnDisk:
    """The folder of one step's checkpoint; see `Destination` of writer.py."""

    def __init__(self, target: Path, world: World) -> None:
        self.target = target
        self.world = world
        self.partial = target.with_suffix(".partial")

    def begin(self) -> None:
        """See Destination."""
        if self.world.rank == 0:
            for old in self.target.parent.glob("step-*.partial"):
                put_aside(old)
            (self.partial / PARTS).mkdir(parents=True)

    def written(self, facts: dict[str, dict]) -> None:
        """See Destination."""

    def parts(self) -> list[bytes]:
        """See Destination."""
        return read_all([self.partial / part_name(rank) for rank in range(self.world.size)])

    def commit(self, small: dict[str, bytes], manifest: str) -> None:
        """See Destination."""
        folder = self.target.parent
        for name, data in small.items():
            write_synced(self.partial / name, data)
        write_synced(self.partial / "manifest.json", manifest.encode())
        if self.target.exists():  # damaged, or the run would not write this step again
            put_aside(self.target)
        os.rename(self.partial, self.target)
        sync(folder)
        write_synced(folder / "latest.new", f"{self.target.name}\n".encode())
        os.replace(folder / "latest.new", folder / "latest")
        sync(folder)
        shutil.rmtree(self.target / PARTS)
        for old in folder.glob(f"{LEFT}*"):
            shutil.rmtree(old)

    def delete(self, old: Path) -> None:
        """See Destination."""
        # first, so that a half-deleted one is no checkpoint
        (old / "manifest.json").unlink(missing_ok=True)
        shutil.rmtree(old)

    def close(self) -> None:
        """See Destination."""


def put_aside(folder: Path) -> None:
    """Rename what may hold a file per rank, to be deleted later: that takes longer than a step may wait."""
    os.rename(folder, folder.with_name(f"{LEFT}{uuid.uuid4().hex}"))


def part_name(rank: int) -> str:
    """A rank's part of the index, below the checkpoint's folder."""
    return f"{PARTS}/rank-{rank:05d}.arrow"


def read_all(places: list[Place]) -> list[bytes]:
    """Small files, several at once: network storage answers many requests as fast as one."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda place: place.read_bytes(), places))


def write_synced(path: Path, data: bytes) -> None:
    """Write a small file and sync it."""
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
