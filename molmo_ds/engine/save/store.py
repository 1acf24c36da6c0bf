"""A checkpoint in a store: each rank uploads its files from its machine's scratch folder, and the manifest comes last.

A rank that is killed in the middle finds its files again, whole, and the upload resumes with what is missing.
"""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from molmo_ds.config import RunConfig
from molmo_ds.engine.launch import World
from molmo_ds.engine.save.disk import PARTS, part_name, read_all, write_synced
from molmo_ds.files import Remote
from molmo_ds.stores import lock
from molmo_ds.stores.mirror import Mirror, working_folder
from molmo_ds.stores.run_folder import mark_of
from molmo_ds.stores.upload import upload

ATTEMPT = "attempt"  # the object that names the save whose files lie below a checkpoint without a manifest


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
        self.attempt = ""

    def begin(self) -> None:
        """See Destination."""
        named = self.world.agree(lambda: (mark_of(self.run), uuid.uuid4().hex))
        self.mark, self.attempt = named
        for old in partials(self.local):
            if old != self.partial:  # also of ranks that there are no more
                shutil.rmtree(old, ignore_errors=True)
        for folder in (self.partial, self.partial / PARTS):
            for file in [*folder.glob(f"{self.name}.*"), *folder.glob(f".{self.name}.*")]:
                file.unlink(missing_ok=True)
        (self.partial / PARTS).mkdir(parents=True, exist_ok=True)
        if self.world.rank == 0:  # now, so that a mixture of two attempts is no checkpoint
            self.delete(self.target)
            (self.target / ATTEMPT).write_bytes(self.attempt.encode())

    def written(self, facts: dict[str, dict]) -> None:
        """See Destination."""
        note = {"run": self.mark, "ranks": self.world.size, "attempt": self.attempt, "files": facts}
        write_synced(self.partial / f"{self.name}.whole", json.dumps(note).encode())
        self.send(facts)

    def send(self, facts: dict[str, dict]) -> None:
        """Upload this rank's files, or what is missing of them."""
        for name in facts:
            upload(self.partial / name, self.target / name)

    def parts(self) -> list[bytes]:
        """See Destination."""
        return read_all([self.target / part_name(rank) for rank in range(self.world.size)])

    def commit(self, small: dict[str, bytes], manifest: str) -> None:
        """See Destination."""
        lock.refuse_lost(self.run)
        for name, data in small.items():
            (self.target / name).write_bytes(data)
        Mirror(self.local, self.run).push()  # a checkpoint is there with the log up to it
        (self.target / "manifest.json").write_bytes(manifest.encode())
        (self.target.parent / "latest").write_bytes(f"{self.target.name}\n".encode())
        (self.target / PARTS).delete()
        (self.target / ATTEMPT).delete()
        for other in self.target.parent.glob("step-*"):  # of a save that was never finished
            if other < self.target and not (other / "manifest.json").is_file():
                other.delete()

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


def attempt_of(target: Remote) -> str:
    """The save whose files lie in the store without a manifest; "" where none is known."""
    return (target / ATTEMPT).read_if_there() or ""


def whole(partial: Path, world: World, mark: str) -> dict[str, Any] | None:
    """The note about this rank's files of a checkpoint, if they are whole, of this run and of its number of ranks.

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
    return note if same and known else None
