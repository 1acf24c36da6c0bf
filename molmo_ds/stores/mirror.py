"""The small files of a folder that grows (logs, TensorBoard, results), copied to a store while they grow."""

import hashlib
import threading
from pathlib import Path

from molmo_ds import environment, files
from molmo_ds.files import Remote
from molmo_ds.stores import lock

SECONDS = 10  # between two copies
LEFT_OUT = (
    "checkpoints",
    "launch",
)  # folders that have their own way, or are this machine's affair


class Mirror:
    """Copies what changed in `local` to `remote`, on request and every SECONDS in a thread of its own."""

    one_at_a_time = threading.Lock()  # or an older state could land after a newer one

    def __init__(self, local: Path, remote: Remote, locked: bool = False) -> None:
        """`locked`: nothing is sent any more once another process has taken the lock of `remote`."""
        self.local = local
        self.remote = remote
        self.locked = locked
        self.sent: dict[Path, tuple[int, int]] = {}
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def pull(self) -> None:
        """Make `local` what the store holds; a file that went on growing here, or is here alone, stays."""
        self.local.mkdir(parents=True, exist_ok=True)
        for name in below(self.remote):
            data = (self.remote / name).read_bytes()
            path = self.local / name
            if not path.is_file() or path.read_bytes()[: len(data)] != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def push(self) -> None:
        """Copy what changed; OSError where the store does not take it, or the lock is lost."""
        if self.locked:
            lock.refuse_lost(self.remote)
        with self.one_at_a_time:
            for path in self._files():
                status = path.stat()
                facts = (status.st_size, status.st_mtime_ns)
                if self.sent.get(path) != facts:
                    name = path.relative_to(self.local).as_posix()
                    (self.remote / name).write_bytes(path.read_bytes())
                    self.sent[path] = facts

    def start(self) -> None:
        """Push every SECONDS from now on; what the store refuses is tried again the next time."""
        self.thread = threading.Thread(target=self._push_repeatedly, name="mirror", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Push a last time."""
        self.ended.set()
        if self.thread is not None:
            self.thread.join()
        self.push()

    def _push_repeatedly(self) -> None:
        while not self.ended.wait(SECONDS):
            try:
                self.push()
            except (OSError, ValueError):
                continue

    def _files(self) -> list[Path]:
        return [
            path
            for path in sorted(self.local.rglob("*"))
            if path.relative_to(self.local).parts[0] not in LEFT_OUT
            and path.is_file()
            and not path.name.endswith((".new", ".tmp"))
        ]


def below(folder: Remote) -> list[str]:
    """Names of the objects at any depth below a folder, relative to it, without those that a Mirror leaves out."""
    fs = files.filesystem(folder.url)
    try:
        found = files.retry(lambda: fs.find(folder.url), folder.url)
    except FileNotFoundError as error:
        files.refused(error)
        return []
    root = fs._strip_protocol(folder.url).rstrip("/") + "/"
    names = [path.removeprefix(root) for path in found]
    return [name for name in names if name and name.partition("/")[0] not in (*LEFT_OUT, "lock")]


def scratch_of(remote: str, scratch: str | None) -> Path:
    """The local folder that stands for a remote one: below `scratch`, else below the system's temporary folder."""
    root = Path(scratch) if scratch else environment.private_folder()
    digest = hashlib.sha256(remote.encode()).hexdigest()[:12]
    return root / f"{Remote(remote).name}-{digest}"


def working_folder(out: str, scratch: str | None) -> Path:
    """The local folder that a run writes into: `out`, or the scratch folder of a remote one."""
    return scratch_of(out, scratch) if files.is_remote(out) else files.local(out)
