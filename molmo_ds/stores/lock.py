"""One run a folder: the holder of its lock writes there, and another is refused with a sentence that names the holder.

On a disk it is a record lock of the kernel's on the file `lock`, which ends with its process. In a store it is an
object `lock` that its holder writes again every BEAT seconds; one that stays unchanged for PATIENCE seconds, or whose
process on this machine is gone, is taken over. Hosts and containers may share a name and count their processes from 1
on, so "this machine" is a boot of a kernel and a namespace of processes.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from molmo_ds import files
from molmo_ds.files import Place, Remote

log = logging.getLogger(__name__)
BEAT = 5.0  # seconds between two signs of life
BOOT = Path("/proc/sys/kernel/random/boot_id")
PATIENCE = 30.0  # seconds without one after which a holder counts as gone


def take(folder: Place) -> "DiskLock | StoreLock":
    """Hold the lock of a folder until `release`; ValueError where another run holds it."""
    return StoreLock(folder) if isinstance(folder, Remote) else DiskLock(folder)


def _refusal(folder: Place, holder: dict[str, Any] | None = None) -> ValueError:
    who = f" (process {holder['pid']} on {holder['host']})" if holder else ""
    return ValueError(
        f"Another run writes into {folder}{who}; stop it first, or choose another out."
    )


class DiskLock:
    """A lock of the kernel's. It is not handed on to forked processes, and works over NFS."""

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out={folder} is a file; give a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = open(folder / "lock", "a")  # noqa: SIM115 (held until release)
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _refusal(folder) from None
            log.warning(
                "%s cannot be locked (%s): see to it that no second run writes there.",
                folder,
                error,
            )

    def release(self) -> None:
        """Let others in; a folder that was made for the lock alone goes with it."""
        if os.listdir(self.folder) == ["lock"]:
            os.unlink(self.folder / "lock")
            self.folder.rmdir()
        self.file.close()


class StoreLock:
    """An object that its holder keeps alive."""

    def __init__(self, folder: Remote) -> None:
        self.folder = folder
        self.object = folder / "lock"
        self.me = {**process(), "id": uuid.uuid4().hex}
        self.ended = threading.Event()
        while not self._create():
            self._wait_for_its_end()
        self.thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self.thread.start()

    def _content(self) -> bytes:
        return json.dumps({**self.me, "time": time.time()}).encode()

    def _create(self) -> bool:
        """Whether the lock is ours now. Not every store keeps the first of two, so it is read before and after."""
        if not self._read():
            with contextlib.suppress(FileExistsError):
                self.object.write_bytes(self._content(), new=True)
        return self._read().get("id") == self.me["id"]

    def _read(self) -> dict:
        try:
            return json.loads(self.object.read_bytes())
        except FileNotFoundError as error:
            files.refused(error)
            return {}

    def _wait_for_its_end(self) -> None:
        """Delete a lock whose holder is gone; ValueError as soon as the holder shows that it is not."""
        first = self._read()
        if first and not _is_gone(first):
            log.warning(
                "%s is locked by process %s on %s; waiting %.0f s for a sign of life.",
                self.folder, first["pid"], first["host"], PATIENCE,
            )  # fmt: skip
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until:
                time.sleep(min(1.0, PATIENCE / 10))
                now = self._read()
                if not now:
                    return
                if now != first:
                    raise _refusal(self.folder, now)
        if self._read() == first:
            self.object.delete()

    def _beat(self) -> None:
        while not self.ended.wait(BEAT):
            try:
                if self._read().get("id") != self.me["id"]:
                    return
                self.object.write_bytes(self._content())
            except (OSError, ValueError):
                continue

    def release(self) -> None:
        """Let others in."""
        self.ended.set()
        self.thread.join()
        if self._read().get("id") == self.me["id"]:
            self.object.delete()


def refuse_lost(folder: Remote) -> None:
    """OSError where another process has taken the lock, as it may after this machine was out of reach for long."""
    try:
        holder = json.loads((folder / "lock").read_bytes())
    except FileNotFoundError as error:
        files.refused(error)
        return
    if any(holder.get(name) != value for name, value in process().items()):
        raise OSError(f"process {holder['pid']} on {holder['host']} has taken {folder} meanwhile")


def process() -> dict[str, Any]:
    """What tells this process from all others: the host's name for people, its machine, its number there."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}


def _machine() -> str:
    """The boot of the kernel and the namespace in which this process has its number; "" where that is not told."""
    try:
        return f"{BOOT.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_gone(holder: dict) -> bool:
    """Whether a holder was a process of this machine that has ended."""
    here = _machine()
    if not here or holder.get("machine") != here or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
