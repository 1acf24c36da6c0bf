"""Saving: a copy to host memory, files written by a thread, and one moment that makes a checkpoint exist.

When every rank has written its files, rank 0 writes the manifest and only then names the checkpoint in `latest`; a
process killed at any moment leaves the checkpoints before it untouched. disk.py and store.py say where files grow.
"""

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from molmo_ds import files, settings
from molmo_ds.config import RunConfig
from molmo_ds.engine.fragments import Fragment
from molmo_ds.engine.launch import World
from molmo_ds.engine.save.disk import OnDisk
from molmo_ds.engine.save.store import InStore, partials, whole
from molmo_ds.files import Remote, sync
from molmo_ds.stores.run_folder import mark_of
from molmo_ds.weights import checkpoint, checksums

log = logging.getLogger(__name__)


class Destination(Protocol):
    """Where the checkpoint of one step comes to exist. Its methods raise OSError where they cannot do their part."""

    target: files.Place  # what it is called in the end
    partial: Path  # a local folder that this rank writes its files into

    def begin(self) -> None:
        """Make `partial`, without the files of earlier attempts; every rank calls it."""

    def written(self, facts: dict[str, dict]) -> None:
        """This rank's files are in `partial`; every rank calls it, in a thread."""

    def commit(self, manifest: str) -> None:
        """All files of all ranks are there: make it a checkpoint, the latest; rank 0 calls it."""

    def delete(self, old: files.Place) -> None:
        """Remove another checkpoint; rank 0 calls it."""

    def close(self) -> None:
        """The checkpoint is there; every rank calls it."""


class Writer:
    """One save at a time; `poll` after each step completes it, `finish` waits for it. All ranks make the same calls."""

    def __init__(self, config: RunConfig, world: World, scratch: Path | None = None) -> None:
        self.config = config
        self.world = world
        self.scratch = scratch  # for copies that must not fill the host's memory
        self.thread: threading.Thread | None = None
        self.error: str | None = None
        self.facts: dict[str, dict] = {}  # of the files that this rank has written
        self.place: Destination | None = None
        # copies of the state; a new one at each save costs more than the copying
        self.buffers: dict[str, Tensor] = {}
        self.stall = 0.0  # seconds that the last save held the training up

    def save(
        self, folder: str, step: int, pieces: Iterable[Fragment], lanes: dict[int, dict]
    ) -> None:
        """Start writing `folder/step-XXXXXXXX`; returns when the state is copied (or, without async_save, written).

        Raises OSError on every rank if one of them could not write this checkpoint or the one before.
        """
        self.finish()
        began = time.perf_counter()
        self.place = self._destination(folder, step)
        self._begin()
        tensors = {}
        listed = []
        scalars = {}
        for piece in pieces:
            scalars |= piece.scalars
            if not piece.owned:
                continue
            entry = {
                "name": piece.name,
                "shape": piece.shape,
                "start": piece.start,
                "size": piece.size,
            }
            listed.append({**entry, "stride": piece.stride, "keys": list(piece.tensors)})
            for key, tensor in piece.tensors.items():
                where = f"{piece.name}|{piece.start}|{key}"
                if where not in self.buffers:
                    self.buffers[where] = buffer(tensor, self.scratch)
                # from a GPU to pinned memory, without a wait for each
                tensors[where] = self.buffers[where].copy_(tensor.detach(), non_blocking=True)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        name = f"rank-{self.world.rank:05d}"
        facts = {
            "file": f"{name}.safetensors",
            "pieces": listed,
            "scalars": scalars,
            "lanes": lanes,
        }
        # all have begun, or one says why not
        self._raise_if_failed(next(filter(None, self.world.gather(self.error)), None))
        self.thread = threading.Thread(
            target=self._write, args=(name, tensors, facts), name="checkpoint"
        )
        self.thread.start()
        if not self.config.async_save:
            self.finish()
        self.stall = time.perf_counter() - began

    def poll(self) -> None:
        """Complete the save if every rank has written its files."""
        # in a step, where ranks exchange numbers only
        if self.thread is not None and self.world.largest(int(self.thread.is_alive())) == [0]:
            self.finish()

    def finish(self) -> None:
        """Wait for the save under way, if any, and make it the latest checkpoint."""
        if self.thread is None:
            return
        self.thread.join()
        self.thread = None
        outcomes = self.world.gather((self.error, self.facts))
        failed = [error for error, _ in outcomes if error]
        if not failed and self.world.rank == 0:
            try:
                self._commit({name: one for _, facts in outcomes for name, one in facts.items()})
            except (OSError, ValueError) as error:
                self.error = str(error)
        self._raise_if_failed(failed[0] if failed else self.world.broadcast(self.error))
        self.place.close()

    def resume_upload(self, folder: str) -> None:
        """Finish the upload of a checkpoint that was killed when all ranks had their files whole on their disks.

        Does nothing for a folder on a disk, for a checkpoint that is not newer than those in the store, and where a
        rank's files are missing.
        """
        if not isinstance(files.place(folder), Remote):
            return
        mark = self.world.agree(lambda: mark_of(files.place(folder).parent))
        local = self._destination(folder, 0).local
        here = {path.stem: whole(path, self.world, mark) for path in partials(local)}
        everywhere = [{n for n, facts in one.items() if facts} for one in self.world.gather(here)]
        there = self.world.agree(lambda: [path.name for path in checkpoint.steps(folder)])
        name = max(set.intersection(*everywhere), default="")
        if name <= max(there, default=""):
            return
        log.info("The upload of %s was killed; it resumes.", name)
        self.place = self._destination(folder, int(name[5:]))
        self.facts = here[name]
        self.thread = threading.Thread(target=self._send, name="checkpoint")
        self.thread.start()
        self.finish()

    def _destination(self, folder: str, step: int) -> Destination:
        target = files.place(folder) / f"step-{step:08d}"
        if isinstance(target, Remote):
            return InStore(target, self.config, self.world)
        return OnDisk(target, self.world)

    def _raise_if_failed(self, error: str | None) -> None:
        self.error = None
        if error:
            raise OSError(
                f"The checkpoint {self.place.target} could not be written: {error}; the one before is whole."
            )

    def _begin(self) -> None:
        self.facts = {}
        try:
            self.place.begin()
            if self.world.rank == 0:
                settings.save(self.config, self.place.partial / "config.yaml")
        except (OSError, ValueError) as error:
            self.error = str(error)

    def _write(self, name: str, tensors: dict[str, Tensor], facts: dict) -> None:
        partial = self.place.partial
        try:
            for where, tensor in tensors.items():
                if not tensor.isfinite().all():
                    raise ValueError(f"{where.partition('|')[0]} holds a number that is not finite")
            save_file(tensors, partial / f"{name}.safetensors")
            (partial / f"{name}.json").write_text(json.dumps(facts))
            for file in (partial / f"{name}.safetensors", partial / f"{name}.json"):
                sync(file)
                self.facts[file.name] = checksums.facts_of(file)
            self.place.written(self.facts)
        except Exception as error:  # whatever it was, the main thread of every rank must hear of it
            self.error = str(error) or type(error).__name__

    def _send(self) -> None:
        try:
            self.place.send(self.facts)
        except Exception as error:  # as above
            self.error = str(error) or type(error).__name__

    def _commit(self, noted: dict[str, dict]) -> None:
        config = self.place.partial / "config.yaml"
        sync(config)
        noted["config.yaml"] = checksums.facts_of(config)
        step = int(self.place.target.name[5:])
        manifest = {"format": checkpoint.FORMAT, "step": step, "ranks": self.world.size}
        manifest |= {"optimizer": self.config.optim.name, "files": noted}
        self.place.commit(json.dumps(manifest, indent=1))
        self._prune()

    def _prune(self) -> None:
        every = (self.config.keep_every or 0) * self.config.save_interval
        kept = max(self.config.keep_checkpoints, 1)
        for old in checkpoint.steps(self.place.target.parent)[kept:]:
            if not every or int(old.name[5:]) % every:
                self.place.delete(old)


def buffer(tensor: Tensor, folder: Path | None) -> Tensor:
    """Host memory for a copy, pinned where the tensor is on a GPU.

    With a folder it is a file without a name there, which the kernel pages in and out.
    """
    if folder is None:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    descriptor, path = tempfile.mkstemp(dir=folder)
    os.close(descriptor)
    made = torch.from_file(path, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    os.unlink(path)
    return made.view(tensor.shape)
