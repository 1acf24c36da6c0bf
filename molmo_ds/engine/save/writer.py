"""Saving: a copy to host memory, files written by a thread, and one rename that makes a checkpoint exist.

A checkpoint grows under a temporary name. When every rank has synced its files, rank 0 writes the manifest, renames the
folder and only then names it in `latest`; a process killed at any moment leaves the checkpoints before it untouched.
"""

import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from molmo_ds import settings
from molmo_ds.config import RunConfig
from molmo_ds.engine.fragments import Fragment
from molmo_ds.engine.launch import World
from molmo_ds.weights import checkpoint, checksums

log = logging.getLogger(__name__)


class Writer:
    """One save at a time; `poll` after each step completes it, `finish` waits for it. All ranks make the same calls."""

    def __init__(self, config: RunConfig, world: World, scratch: Path | None = None) -> None:
        self.config = config
        self.world = world
        self.scratch = scratch  # for copies that must not fill the host's memory
        self.thread: threading.Thread | None = None
        self.error: str | None = None
        self.target = Path()
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
        self.target = Path(folder) / f"step-{step:08d}"
        partial = self.target.with_suffix(".partial")
        if self.world.rank == 0:
            self._begin(Path(folder), partial)
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
        self._raise_if_failed(self.world.broadcast(self.error))  # else the folder exists
        self.thread = threading.Thread(
            target=self._write, args=(partial, name, tensors, facts), name="checkpoint"
        )
        self.thread.start()
        if not self.config.async_save:
            self.finish()
        self.stall = time.perf_counter() - began

    def poll(self) -> None:
        """Complete the save if every rank has written its files."""
        if self.thread is not None and all(self.world.gather(not self.thread.is_alive())):
            self.finish()

    def finish(self) -> None:
        """Wait for the save under way, if any, and make it the latest checkpoint."""
        if self.thread is None:
            return
        self.thread.join()
        self.thread = None
        failed = [error for error in self.world.gather(self.error) if error]
        if not failed and self.world.rank == 0:
            try:
                self._commit()
            except OSError as error:
                self.error = str(error)
        self._raise_if_failed(failed[0] if failed else self.world.broadcast(self.error))

    def _raise_if_failed(self, error: str | None) -> None:
        self.error = None
        if error:
            raise OSError(
                f"The checkpoint {self.target} could not be written: {error}; the one before is whole."
            )

    def _begin(self, folder: Path, partial: Path) -> None:
        try:
            for old in folder.glob("step-*.partial"):
                shutil.rmtree(old)
            partial.mkdir(parents=True)
            settings.save(self.config, partial / "config.yaml")
        except OSError as error:
            self.error = str(error)

    def _write(self, partial: Path, name: str, tensors: dict[str, Tensor], facts: dict) -> None:
        try:
            for where, tensor in tensors.items():
                if not tensor.isfinite().all():
                    raise ValueError(f"{where.partition('|')[0]} holds a number that is not finite")
            save_file(tensors, partial / f"{name}.safetensors")
            (partial / f"{name}.json").write_text(json.dumps(facts))
            sums = {}
            for file in (partial / f"{name}.safetensors", partial / f"{name}.json"):
                sync(file)
                sums[file.name] = checksums.facts_of(file)
            (partial / f"{name}.sums").write_text(json.dumps(sums))
        except Exception as error:  # whatever it was, the main thread of every rank must hear of it
            self.error = str(error) or type(error).__name__

    def _commit(self) -> None:
        partial = self.target.with_suffix(".partial")
        files = {}
        for sums in sorted(partial.glob("rank-*.sums")):
            files |= json.loads(sums.read_text())
            sums.unlink()
        config = partial / "config.yaml"
        sync(config)
        files["config.yaml"] = checksums.facts_of(config)
        step = int(self.target.name[5:])
        manifest = {"format": checkpoint.FORMAT, "step": step, "ranks": self.world.size}
        manifest |= {"optimizer": self.config.optim.name, "files": files}
        write_synced(partial / "manifest.json", json.dumps(manifest, indent=1))
        if self.target.exists():  # damaged, or the run would not write this step again
            shutil.rmtree(self.target)
        os.rename(partial, self.target)
        sync(self.target.parent)
        write_synced(self.target.parent / "latest.new", self.target.name + "\n")
        os.replace(self.target.parent / "latest.new", self.target.parent / "latest")
        sync(self.target.parent)
        self._prune()

    def _prune(self) -> None:
        every = (self.config.keep_every or 0) * self.config.save_interval
        for old in checkpoint.steps(self.target.parent)[max(self.config.keep_checkpoints, 1) :]:
            if not every or int(old.name[5:]) % every:
                # first, so that a half-deleted one is no checkpoint
                (old / "manifest.json").unlink(missing_ok=True)
                shutil.rmtree(old)


def sync(path: Path) -> None:
    """Make a file or the entries of a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, text: str) -> None:
    """Write a small file and sync it."""
    with open(path, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


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
