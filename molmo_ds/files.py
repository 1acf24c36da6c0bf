"""Local and remote paths: reads and sizes with bounded retries, and writes that are never half done."""

import base64
import fnmatch
import functools
import glob
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from molmo_ds import environment
from molmo_ds.config import home

ATTEMPTS = 5  # tries before a failing read is raised
FIRST_DELAY = 0.5  # seconds before the second try; doubles with each further try
LONGEST_DELAY = 60.0  # also caps what a server's Retry-After can ask for
TIMEOUT = 60.0  # seconds without a byte before a remote read counts as failed
CHUNK = 16 << 20  # bytes of one request where a long range is read in parallel
READERS = 8  # such requests at once
READ_ONLY = ("http", "https", "hf")  # stores that nothing here writes to
GOOGLE = ("gs", "gcs")
LISTLESS = ("http", "https")  # stores that cannot say what a folder holds

_PERMANENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_NO_KEY = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "DefaultCredentialsError",
)
T = TypeVar("T")


class ShortRead(OSError):
    """Fewer bytes came than the file should hold."""


def refuse_read_only(path: str) -> None:
    """ValueError for a URL of a store that nothing here writes to."""
    scheme = path.split("://")[0]
    if is_remote(path) and scheme in READ_ONLY:
        raise ValueError(
            f"{path} can be read only; write to a folder or to s3://, gs://, weka:// or r2://."
        )


def is_remote(path: str) -> bool:
    """Whether `path` is a URL (s3://, gs://, http://, https://, ...) rather than a local path."""
    return "://" in path and not path.startswith("file://")


def join(folder: str, name: str) -> str:
    """`folder/name` for local paths and URLs."""
    return folder.rstrip("/") + "/" + name


def filesystem(path: str) -> Any:
    """The fsspec file system of a path or URL; ValueError names the package that is missing for it."""
    protocol = path.split("://")[0] if is_remote(path) else "file"
    try:
        options = _options(protocol)
        return fsspec.filesystem(_known(protocol), **options)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{path} cannot be opened: {error}") from None


def _options(protocol: str) -> dict[str, Any]:
    if protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
        return {"client_kwargs": {"timeout": timeout}}
    if protocol in environment.S3_LIKE:
        client = {"connect_timeout": TIMEOUT, "read_timeout": TIMEOUT}
        client |= {"retries": {"mode": "standard", "max_attempts": 1}}  # `retry` does that
        options = {"use_listings_cache": False, "config_kwargs": client}
        return options | environment.store_options(protocol)
    if protocol in GOOGLE:
        # gcsfs asks for a bucket's kind by gRPC, which does not survive the forks of data workers
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    if protocol in (*GOOGLE, "hf"):
        return {"use_listings_cache": False}
    return {}


@functools.cache
def _known(protocol: str) -> str:
    """The protocol, which fsspec knows from then on: weka:// and r2:// are S3 at another address."""
    if protocol in environment.S3_LIKE and protocol != "s3":
        from s3fs import S3FileSystem

        kind = type(f"{protocol.title()}FileSystem", (S3FileSystem,), {"protocol": (protocol,)})
        fsspec.register_implementation(protocol, kind, clobber=True)
    return protocol


@dataclass(frozen=True, order=True)
class Remote:
    """A path in a store, with the methods of pathlib's that readers of weights use; each access is retried.

    A store that refuses the access is an OSError, never a file that is not there.
    """

    url: str

    def __truediv__(self, name: str) -> "Remote":
        return Remote(join(self.url, name))

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return os.path.splitext(self.name)[1]

    @property
    def parent(self) -> "Remote":
        """The folder above."""
        return Remote(self.url.rstrip("/").rpartition("/")[0])

    @property
    def listed(self) -> bool:
        """Whether the store can say what a folder holds."""
        return self.url.split("://")[0] not in LISTLESS

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        try:
            return retry(lambda: filesystem(self.url).info(self.url), self.url)["type"] == "file"
        except FileNotFoundError as error:
            return refused(error)

    def is_dir(self) -> bool:
        """Whether an object lies below this name; True where the store cannot say."""
        return not self.listed or bool(self.children())

    def children(self) -> list["Remote"]:
        """What lies directly below, sorted; nothing where the store cannot say."""
        if not self.listed:
            return []
        try:
            found = retry(lambda: filesystem(self.url).ls(self.url, detail=False), self.url)
        except FileNotFoundError as error:
            return [self] if refused(error) else []
        names = sorted({path.rstrip("/").rpartition("/")[2] for path in found} - {"", self.name})
        return [self / name for name in names]

    def glob(self, pattern: str) -> list["Remote"]:
        """Children whose name matches."""
        return [child for child in self.children() if fnmatch.fnmatchcase(child.name, pattern)]

    def read_bytes(self) -> bytes:
        """The whole object."""
        return read(self.url)

    def read_text(self) -> str:
        """The whole object as UTF-8."""
        return self.read_bytes().decode()

    def read_if_there(self) -> str | None:
        """The object as UTF-8, None where there is none."""
        try:
            return self.read_text()
        except FileNotFoundError as error:
            refused(error)
            return None

    def delete(self) -> None:
        """Remove the object, or everything below this name; nothing where it is not there."""
        try:
            retry(
                lambda: filesystem(self.url).rm(self.url, recursive=True),
                self.url,
                "deleted",
            )
        except FileNotFoundError as error:
            refused(error)

    def write_bytes(self, data: bytes, new: bool = False) -> None:
        """Put an object, which appears whole or not at all.

        Args:
            new: FileExistsError where there is one already, as far as the store can tell.
        """
        retry(lambda: _put(self.url, data, "create" if new else "overwrite"), self.url, "written")


def _put(url: str, data: bytes, mode: str) -> None:
    fs = filesystem(url)
    if url.split("://")[0] not in GOOGLE or not data:
        fs.pipe_file(url, data, **({"mode": mode} if mode == "create" else {}))
        return
    # gcsfs puts small objects between line ends, where a last byte of 13 is lost; and it compares nothing
    bucket, key, _ = fs.split_path(url)
    query = {"uploadType": "media", "name": key}
    query |= {"ifGenerationMatch": "0"} if mode == "create" else {}
    service = fs.base.removesuffix("/storage/v1/")
    answer = fs.call(
        "POST",
        f"{service}/upload/storage/v1/b/{bucket}/o",
        data=data,
        headers={"Content-Type": "application/octet-stream"},
        json_out=True,
        **query,
    )
    digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    if answer.get("md5Hash") != digest:
        raise OSError(f"{url} was changed on its way")


def refused(error: FileNotFoundError) -> bool:
    """False for what is not there; raises what the store refused."""
    if isinstance(error.__cause__, PermissionError) or getattr(error.__cause__, "status", 0) == 403:
        raise error
    return False


Place = Path | Remote


def place(text: str | Path | Remote) -> Place:
    """The path as a Path or, of a URL, as a Remote; `~` is the home folder."""
    if isinstance(text, Path | Remote):
        return text
    return Remote(text.rstrip("/")) if is_remote(text) else local(text)


def size(path: str) -> int:
    """Bytes of a file."""
    return retry(lambda: int(filesystem(path).size(path)), path)


def read(path: str) -> bytes:
    """A whole file."""
    return retry(lambda: _fetch(path, None, None), path)


def read_range(path: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file; ShortRead after ATTEMPTS tries if they are not all there."""
    return retry(lambda: _fetch(path, start, stop), path)


def read_long(path: str, start: int, stop: int) -> bytearray:
    """Bytes [start, stop) of a remote file, by several requests at once."""
    begins = range(start, stop, CHUNK)
    data = bytearray(stop - start)

    def fill(begin: int) -> None:
        end = min(begin + CHUNK, stop)
        data[begin - start : end - start] = read_range(path, begin, end)

    if len(begins) == 1:
        fill(start)
    else:
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(fill, begins))
    return data


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


def retry(action: Callable[[], T], path: str, done: str = "read") -> T:
    """Run `action` up to ATTEMPTS times with exponential back-off; Retry-After of a server is honoured.

    A file that is not there or not permitted is a FileNotFoundError at once; all else an OSError that names the path.

    Args:
        done: what could not be done, for the sentence of an error.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if isinstance(error, FileNotFoundError) and _of_web(error.__cause__):
                # fsspec says "not found" for every answer of a web server, 503 included
                error = error.__cause__
            if isinstance(error, _PERMANENT) or getattr(error, "status", None) in (403, 404, 410):
                raise FileNotFoundError(f"{path} is not there or may not be {done}") from error
            if type(error).__name__ in _NO_KEY:
                raise ValueError(
                    f"{path} cannot be opened without credentials: {error}; see docs/guides/buckets.md."
                ) from None
            if isinstance(error, FileExistsError) or not _transient(error):
                raise
            if attempt == ATTEMPTS:
                kind = ShortRead if isinstance(error, ShortRead) else OSError
                reason = str(error) or type(error).__name__
                raise kind(f"{path} could not be {done} in {ATTEMPTS} tries: {reason}") from error
            time.sleep(_delay(error, attempt))
    raise AssertionError("unreachable")


def _of_web(cause: BaseException | None) -> bool:
    kinds = ("aiohttp", "asyncio", "builtins")
    return cause is not None and type(cause).__module__.split(".")[0] in kinds


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
        "requests",
    )


def _delay(error: Exception, attempt: int) -> float:
    asked = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    wait = float(asked) if str(asked).isdigit() else FIRST_DELAY * 2 ** (attempt - 1)
    return min(wait, LONGEST_DELAY)


def modified_ns(place: Place) -> int:
    """When a file was last written, in nanoseconds of its storage's clock."""
    if isinstance(place, Path):
        return place.stat().st_mtime_ns
    when = retry(lambda: filesystem(place.url).modified(place.url), place.url)
    return int(when.timestamp() * 1e9)


def find(path: str) -> list[str]:
    """The local file of this name, or those that its last part matches as a glob, sorted; folders are no patterns."""
    if os.path.exists(path):
        return [path]
    folder, pattern = os.path.split(path)
    return sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))


def local(text: str) -> Path:
    """A path as users write it: `~` is the home folder."""
    return Path(home(text))


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write under a temporary name, sync, rename: after a crash the file is whole or not there."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
    sync(temporary)
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Rename an already synced file to its final name and sync the folder."""
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file, or the entries of a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
