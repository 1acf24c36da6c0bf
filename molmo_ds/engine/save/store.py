"""A checkpoint in a store: each rank uploads its files from its machine's scratch folder, and the manifest comes last.

A rank that is killed in the middle finds its files again, whole, and the upload resumes with what is missing.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from molmo_ds.config import RunConfig
from molmo_ds.engine.launch import World
from molmo_ds.engine.save.disk import write_synced
from molmo_ds.files import Remote
from molmo_ds.stores import lock
from molmo_ds.stores.mirror import Mirror, working_folder
from molmo_ds.stores.run_folder import mark_of
from molmo_ds.stores.upload import upload


class InStore:
    """The place of one step's checkpoint; see `Destination` of writer.py."""

    def __init__(self, target: Remote, config: RunConfig, world: World) -> None:
        self.target = target
        self.world = world
        self.local = working_folder(config.out, config.scratch)
        self.partial = self.local / "checkpoints" / f"{target.name}.partial"
        self.run = target.parent.parent
        self.name = f"rank-{world.rank:05d}"
        self.mark = ""

    def begin(self) -> None:
        """See Destination."""
        self.mark = self.world.agree(lambda: mark_of(self.run))
        for old in partials(self.local):
            for file in [*old.glob(f"{self.name}.*"), *old.glob(f".{self.name}.*")]:
                file.unlink(missing_ok=True)
            if old != self.partial and not any(old.glob("rank-*")):
                shutil.rmtree(old, ignore_errors=True)
        self.partial.mkdir(parents=True, exist_ok=True)
        if self.world.rank == 0:  # now, so that a mixture of two attempts is no checkpoint
            (self.target / "manifest.json").delete()

    def written(self, facts: dict[str, dict]) -> None:
        """See Destination."""
        note = {"run": self.mark, "ranks": self.world.size, "files": facts}
        write_synced(self.partial / f"{self.name}.whole", json.dumps(note))
        self.send(facts)

    def send(self, facts: dict[str, dict]) -> None:
        """Upload this rank's files, or what is missing of them."""
        for name in facts:
            upload(self.partial / name, self.target / name)

    def commit(self, manifest: str) -> None:
        """See Destination."""
        lock.refuse_lost(self.run)
        (self.target / "config.yaml").write_bytes((self.partial / "config.yaml").read_bytes())
        Mirror(self.local, self.run).push()  # a checkpoint is there with the log up to it
        (self.target / "manifest.json").write_bytes(manifest.encode())
        (self.target.parent / "latest").write_bytes(f"{self.target.name}\n".encode())

    def delete(self, old: Remote) -> None:
        """See Destination."""
        (old / "manifest.json").delete()
        old.delete()

    def close(self) -> None:
        """See Destination."""
        if self.world.local_rank == 0:
            shutil.rmtree(self.partial, ignore_errors=True)


def partials(local: Path) -> list[Path]:
    """The checkpoints of this machine that are not known to be in the store."""
    return sorted((local / "checkpoints").glob("step-*.partial"))


def whole(partial: Path, world: World, mark: str) -> dict[str, Any] | None:
    """The facts of this rank's files of a checkpoint, if they are whole, of this run and of its number of ranks.

    Args:
        mark: the run's name; files of a run that was deleted from the store have another.
    """
    try:
        note = json.loads((partial / f"rank-{world.rank:05d}.whole").read_text())
        sizes = {name: (partial / name).stat().st_size for name in note["files"]}
    except (OSError, ValueError):
        return None
    same = {name: facts["bytes"] for name, facts in note["files"].items()} == sizes
    known = mark and note["run"] == mark and note["ranks"] == world.size
    if world.rank == 0 and not (partial / "config.yaml").is_file():
        return None
    return note["files"] if same and known else None
