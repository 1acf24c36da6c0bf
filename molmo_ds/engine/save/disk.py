"""A checkpoint on a disk that all ranks share: it grows under a temporary name, and one rename makes it exist."""

import os
import shutil
from pathlib import Path

from molmo_ds.engine.launch import World
from molmo_ds.files import sync


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
                shutil.rmtree(old)
            self.partial.mkdir(parents=True)

    def written(self, facts: dict[str, dict]) -> None:
        """See Destination."""

    def commit(self, manifest: str) -> None:
        """See Destination."""
        folder = self.target.parent
        write_synced(self.partial / "manifest.json", manifest)
        if self.target.exists():  # damaged, or the run would not write this step again
            shutil.rmtree(self.target)
        os.rename(self.partial, self.target)
        sync(folder)
        write_synced(folder / "latest.new", self.target.name + "\n")
        os.replace(folder / "latest.new", folder / "latest")
        sync(folder)

    def delete(self, old: Path) -> None:
        """See Destination."""
        # first, so that a half-deleted one is no checkpoint
        (old / "manifest.json").unlink(missing_ok=True)
        shutil.rmtree(old)

    def close(self) -> None:
        """See Destination."""


def write_synced(path: Path, text: str) -> None:
    """Write a small file and sync it."""
    path.write_text(text)
    sync(path)
