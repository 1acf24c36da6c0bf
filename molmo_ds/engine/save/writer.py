"""Saving: a copy in host memory, files written by a thread, and one moment that makes a checkpoint exist.

The copy is made while the next step computes (copies.py). When every rank has written its files, rank 0 merges the
index, writes the manifest and only then names the checkpoint in `latest`, in a thread as well. A process killed at any
moment leaves the checkpoints before it untouched. disk.py and store.py say where files grow.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from molmo_ds import files, settings
from molmo_ds.config import RunConfig
from molmo_ds.engine.fragments import Fragment
from molmo_ds.engine.launch import World
from molmo_ds.engine.save.copies import Copies
from molmo_ds.engine.save.disk import OnDisk, part_name, write_synced
from molmo_ds.engine.save.store import InStore, attempt_of, partials, whole
from molmo_ds.files import Remote
from molmo_ds.stores.run_folder import mark_of
from molmo_ds.weights import blocks, checkpoint, checksums, index
from molmo_ds.weights.index import Row, rank_file
from molmo_ds.weights.pieces import Stored

log = logging.getLogger(__name__)


class Destination(Protocol):
    """Where the checkpoint of one step comes to exist. Its methods raise OSError where they cannot do their part."""

    target: files.Place  # what it is called in the end
    partial: Path  # a local folder that this rank writes its files into

    def begin(self) -> None:
        """Make `partial`, without the files of earlier attempts; every rank calls it."""

    def written(self, facts: dict[str, dict]) -> None:
        """This rank's files are in `partial`; every rank calls it, in a thread."""

    def parts(self) -> list[bytes]:
        """All files of all ranks are there: the parts of the index; rank 0 calls it, in a thread."""

    def commit(self, small: dict[str, bytes], manifest: str) -> None:
        """Put these files beside them and make it a checkpoint, the latest; rank 0 calls it, in a thread."""

    def delete(self, old: files.Place) -> None:
        """Remove another checkpoint; rank 0 calls it, in a thread."""

    def close(self) -> None:
        """The checkpoint is there; every rank calls it."""


class Writer:
    """One save at a time; `poll` after each step furthers it, `finish` waits for it. All ranks make the same calls.

    It has two phases, each in a thread: "write", in which every rank writes its files, and "commit", in which rank 0
    makes a checkpoint of them.
    """

    def __init__(self, config: RunConfig, world: World, scratch: Path | None = None) -> None:
        self.config = config
        self.world = world
        self.thread = threading.Thread()  # of the phase
        self.phase: str | None = None
        self.error: str | None = None
        self.place: Destination | None = None
        self.copies = Copies(world.device, scratch)
        self.stall = 0.0  # seconds that the last save held the training up

    def save(
        self, folder: str, step: int, pieces: Iterable[Fragment], lanes: dict[int, dict]
    ) -> None:
        """Start writing `folder/step-XXXXXXXX`; without async_save it is written when this returns.

        With async_save the state must not change before `copied` has returned.

        Raises OSError on every rank if one of them could not write this checkpoint or the one before.
        """
        self.finish()
        began = time.perf_counter()
        self.place = self._destination(folder, step)
        self._begin()
        # all have begun, or one says why not
        self._raise_if_failed(self.world.first_said(self.error))
        names: list[str] = []
        rows: list[Row] = []
        scalars: dict[str, float] = {}
        self.copies.begin()
        for piece in pieces:
            scalars |= piece.scalars
            if not piece.owned:
                continue
            rows.append(row_of(piece, self.world.rank))
            for where, tensor in named(piece).items():
                self.copies.add(where, tensor)
                names.append(where)
        self.copies.hand_over()
        self._start("write", partial(self._write, names, rows, scalars, lanes))
        if not self.config.async_save:
            self.finish()
        self.stall = time.perf_counter() - began

    def copied(self) -> None:
        """Call it before the state changes: the checkpoint under way has its copy of it."""
        self.copies.wait()

    def poll(self) -> None:
        """Further the save, if one is under way and every rank has ended its part of the phase."""
        if self.phase is not None and not self.world.largest(int(self.thread.is_alive()))[0]:
            self._advance()

    def finish(self) -> None:
        """Wait for the save under way, if any, and make it the latest checkpoint."""
        while self.phase is not None:
            self._advance()

    def resume_upload(self, folder: str) -> None:
        """Finish the upload of a checkpoint that was killed when all ranks had their files whole on their disks.

        Does nothing for a folder on a disk, for a checkpoint that is not newer than those in the store, where a rank's
        files are missing, and where other hosts have begun the same checkpoint since.
        """
        if not isinstance(files.place(folder), Remote):
            return
        mark = self.world.agree(lambda: mark_of(files.place(folder).parent))
        local = self._destination(folder, 0).local
        here = {path.stem: whole(path, self.world, mark) for path in partials(local)}
        attempts = {(name, note.get("attempt", "")) for name, note in here.items() if note}
        everywhere = set.intersection(*self.world.gather(attempts))
        there = self.world.agree(lambda: [path.name for path in checkpoint.steps(folder)])
        name, attempt = max(everywhere, default=("", ""))
        if name <= max(there, default=""):
            return
        if attempt != self.world.agree(lambda: attempt_of(files.place(folder) / name)):
            log.info("The upload of %s was killed, and begun by others since; it ends here.", name)
            return
        log.info("The upload of %s was killed; it resumes.", name)
        self.place = self._destination(folder, int(name[5:]))
        self._start("write", partial(self._send, here[name]["files"]))
        self.finish()

    def _destination(self, folder: str, step: int) -> Destination:
        target = files.place(folder) / f"step-{step:08d}"
        if isinstance(target, Remote):
            return InStore(target, self.config, self.world)
        return OnDisk(target, self.world)

    def _start(self, phase: str, action: Callable[[], None]) -> None:
        self.phase = phase
        self.thread = threading.Thread(target=self._noting, args=(action,), name="checkpoint")
        self.thread.start()

    def _noting(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it was, the main thread of every rank must hear of it
            self.error = str(error) or type(error).__name__

    def _advance(self) -> None:
        """Begin the phase behind this one, or end the save; waits for the thread."""
        self.thread.join()
        phase, self.phase = self.phase, None
        self._raise_if_failed(self.world.first_said(self.error))
        if phase == "commit":
            self.place.close()
        else:
            self._start("commit", self._commit if self.world.rank == 0 else _nothing)

    def _raise_if_failed(self, error: str | None) -> None:
        self.error = None
        if error:
            raise OSError(
                f"The checkpoint {self.place.target} could not be written: {error}; the one before is whole."
            )

    def _begin(self) -> None:
        try:
            self.place.begin()
            if self.world.rank == 0:
                settings.save(self.config, self.place.partial / "config.yaml")
        except (OSError, ValueError) as error:
            self.error = str(error)

    def _write(
        self,
        names: list[str],
        rows: list[Row],
        scalars: dict[str, float],
        lanes: dict[int, dict],
    ) -> None:
        """Copy and write this rank's tensors, and write its part of the index."""
        tensors = self.copies.finish(names)
        for where, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{where.partition('|')[0]} holds a number that is not finite")
        folder = self.place.partial
        file = rank_file(self.world.rank)
        layout = blocks.Layout.of(tensors)
        facts = blocks.write(folder / file, tensors, layout)
        part = index.part([placed(row, layout) for row in rows], scalars, lanes, facts)
        own = part_name(self.world.rank)
        write_synced(folder / own, part)
        self.place.written({file: facts, own: checksums.facts_of_bytes(part)})

    def _send(self, facts: dict[str, dict]) -> None:
        self.place.send(facts)

    def _commit(self) -> None:
        merged = index.merge(self.place.parts())
        small = {
            index.INDEX: merged.index,
            index.LANES: merged.lanes,
            "config.yaml": (self.place.partial / "config.yaml").read_bytes(),
        }
        noted = {name: checksums.facts_of_bytes(data) for name, data in small.items()}
        step = int(self.place.target.name[5:])
        manifest = {"format": checkpoint.FORMAT, "step": step, "ranks": self.world.size}
        manifest |= {"optimizer": self.config.optim.name, "files": merged.facts | noted}
        self.place.commit(small, json.dumps(manifest, indent=1))
        self._prune()

    def _prune(self) -> None:
        every = (self.config.keep_every or 0) * self.config.save_interval
        kept = max(self.config.keep_checkpoints, 1)
        # later ones are damaged, or the run had begun with them: they may not take the place of what was just saved
        now = int(self.place.target.name[5:])
        made = checkpoint.steps(self.place.target.parent)
        for old in [path for path in made if int(path.name[5:]) <= now][kept:]:
            if not every or int(old.name[5:]) % every:
                self.place.delete(old)


def _nothing() -> None:
    """What the other ranks do while rank 0 commits."""


def named(piece: Fragment) -> dict[str, Tensor]:
    """The tensors of a piece, by their names in a rank's file."""
    return {name_of(piece.name, piece.start, key): one for key, one in piece.tensors.items()}


def name_of(name: str, start: int, key: str) -> str:
    """The name of a tensor in a rank's file; always as long, so that the tensors begin at one place on most ranks."""
    return f"{name}|{start:015d}|{key}"


def row_of(piece: Fragment, rank: int) -> Row:
    """A piece's row in the index, but for its place in the file."""
    types = tuple(blocks.NAMES[tensor.dtype] for tensor in piece.tensors.values())
    keys = tuple(piece.tensors)
    stored = Stored(rank_file(rank), piece.start, piece.size, keys, piece.stride, types)
    return piece.name, tuple(piece.shape), stored


def placed(row: Row, layout: blocks.Layout) -> Row:
    """The row with the place of its first tensor, behind which the others lie."""
    name, shape, stored = row
    offset, block = layout.places[name_of(name, stored.start, stored.keys[0])]
    return name, shape, replace(stored, offset=offset, block=block)
