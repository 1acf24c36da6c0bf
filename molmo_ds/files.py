"""Local and remote paths: reads and sizes with bounded retries, and writes that are never half done."""

import glob
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from molmo_ds.config import home

ATTEMPTS = 5  # tries before a failing read is raised
FIRST_DELAY = 0.5  # seconds before the second try; doubles with each further try
LONGEST_DELAY = 60.0  # also caps what a server's Retry-After can ask for
TIMEOUT = 60.0  # seconds without a byte before a remote read counts as failed

_PERMANENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
T = TypeVar("T")


class ShortRead(OSError):
    """Fewer bytes came than the file should hold."""


def is_remote(path: str) -> bool:
    """Whether `path` is a URL (s3://, gs://, http://, https://, ...) rather than a local path."""
    return "://" in path and not path.startswith("file://")


def join(folder: str, name: str) -> str:
    """`folder/name` for local paths and URLs."""
    return folder.rstrip("/") + "/" + name


def filesystem(path: str) -> Any:
    """The fsspec file system of a path or URL; ValueError names the package that is missing for it."""
    protocol = path.split("://")[0] if is_remote(path) else "file"
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
        options = {"client_kwargs": {"timeout": timeout}}
    try:
        return fsspec.filesystem(protocol, **options)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{path} cannot be opened: {error}") from None


def size(path: str) -> int:
    """Bytes of a file."""
    return retry(lambda: int(filesystem(path).size(path)), path)


def read(path: str) -> bytes:
    """A whole file."""
    return retry(lambda: _fetch(path, None, None), path)


def read_range(path: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file; ShortRead after ATTEMPTS tries if they are not all there."""
    return retry(lambda: _fetch(path, start, stop), path)


def _fetch(path: str, start: int | None, stop: int | None) -> bytes:
    data = filesystem(path).cat_file(path, start=start, end=stop)
    if start is not None:
        check_length(path, data, start, stop)
    return data


def check_length(path: str, data: bytes, start: int, stop: int) -> None:
    """ShortRead when bytes are missing; ValueError when the server sent more than was asked for."""
    if len(data) < stop - start:
        raise ShortRead(f"{path} gave {len(data)} of the {stop - start} bytes from {start} on")
    if len(data) > stop - start:
        raise ValueError(
            f"The server of {path} does not honour range requests; copy the shards to another store."
        )


def retry(action: Callable[[], T], path: str) -> T:
    """Run `action` up to ATTEMPTS times with exponential back-off; Retry-After of a server is honoured.

    A file that is not there or not permitted is a FileNotFoundError at once; all else an OSError that names the path.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
                # fsspec says "not found" for every answer of a web server, 503 included
                error = error.__cause__
            if isinstance(error, _PERMANENT) or getattr(error, "status", None) in (403, 404, 410):
                raise FileNotFoundError(f"{path} is not there or may not be read") from error
            if not _transient(error):
                raise
            if attempt == ATTEMPTS:
                kind = ShortRead if isinstance(error, ShortRead) else OSError
                reason = str(error) or type(error).__name__
                raise kind(f"{path} could not be read in {ATTEMPTS} tries: {reason}") from error
            time.sleep(_delay(error, attempt))
    raise AssertionError("unreachable")


def _transient(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in (408, 425, 429)
    module = type(error).__module__.split(".")[0]
    return isinstance(error, (OSError, TimeoutError)) or module in (
        "aiohttp",
        "botocore",
        "aiobotocore",
        "gcsfs",
    )


def _delay(error: Exception, attempt: int) -> float:
    asked = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    wait = float(asked) if str(asked).isdigit() else FIRST_DELAY * 2 ** (attempt - 1)
    return min(wait, LONGEST_DELAY)


def find(path: str) -> list[str]:
    """The local file of this name, or those that its last part matches as a glob, sorted; folders are no patterns."""
    if os.path.exists(path):
        return [path]
    folder, pattern = os.path.split(path)
    return sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))


def local(text: str) -> Path:
    """A path as somebody writes it: `~` is the home folder."""
    return Path(home(text))


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write under a temporary name, sync, rename: after a crash the file is whole or not there."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Rename an already synced file to its final name and sync the folder."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
