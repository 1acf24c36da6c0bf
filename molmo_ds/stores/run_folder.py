"""The folder of a run: locked, and where it is in a store, a local one that stands for it and is copied while it grows.

Rank 0 alone opens it. What is in the store counts: a local folder that is left over from a run of another name is
emptied first.
"""

import contextlib
import logging
import os
import shutil

from molmo_ds import files
from molmo_ds.files import Remote
from molmo_ds.stores import lock
from molmo_ds.stores.mirror import Mirror, working_folder

log = logging.getLogger(__name__)
MARK = "run"  # the file with a run's name, in the store and in the folder that stands for it


class RunFolder:
    """`out` of a run, from `open` to `close`."""

    def __init__(self, out: str, scratch: str | None) -> None:
        self.place = files.place(out)
        self.local = working_folder(out, scratch)
        self.lock: lock.DiskLock | lock.StoreLock | None = None
        self.mirror: Mirror | None = None

    def open(self) -> None:
        """Lock it and fetch what a store holds; ValueError where another run has it."""
        self.lock = lock.take(self.place)
        if not isinstance(self.place, Remote):
            return
        log.info("%s: files are written to %s first.", self.place, self.local)
        self.mirror = Mirror(self.local, self.place, locked=True)
        mark = mark_of(self.place)
        own = self.local / MARK
        if not (mark and own.is_file() and own.read_text() == mark):
            self._empty()
        self.mirror.pull()

    def _empty(self) -> None:
        for path in self.local.iterdir() if self.local.is_dir() else ():
            if path.name == "launch":  # of the supervisor that has started this very run
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def start(self) -> None:
        """Copy what grows from now on; the store gets the run's name first."""
        if self.mirror is None:
            return
        if not mark_of(self.place):
            (self.local / MARK).write_text(_new_mark(self.place))
        self.mirror.start()

    def delete(self, names: tuple[str, ...]) -> None:
        """Remove these files and folders, wherever they are."""
        for name in names:
            path = self.local / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            if isinstance(self.place, Remote):
                (self.place / name).delete()

    def close(self) -> None:
        """Copy what is not yet in the store, and let other runs in; OSError where the store does not take it."""
        if self.mirror is not None:
            self.mirror.close()
        self.release()

    def release(self) -> None:
        """Let other runs in, whatever happened."""
        if self.lock is None:
            return
        with contextlib.suppress(OSError, ValueError):
            if self.mirror is not None and not self.mirror.ended.is_set():
                self.mirror.close()
        with contextlib.suppress(OSError, ValueError):
            self.lock.release()
        self.lock = None


def mark_of(run: Remote) -> str:
    """The name that a run has in its store; "" where it has none yet."""
    return (run / MARK).read_if_there() or ""


def _new_mark(run: Remote) -> str:
    made = os.urandom(8).hex()
    (run / MARK).write_bytes(made.encode())
    return made
