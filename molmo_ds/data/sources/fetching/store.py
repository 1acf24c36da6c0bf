"""A store of pictures: bytes by their sha256, and a log that says which address gave what, or why it gave nothing.

The folder holds `objects/ab/abcd...` and `log.sqlite`. A file gets its final name only when it is whole, so the process
may be killed at any point.
"""

import collections
import fcntl
import hashlib
import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit


class Request(NamedTuple):
    """One picture wanted: its address and, where the data set publishes it, the sha256 of its bytes."""

    url: str
    sha256: str = ""


class Outcome(NamedTuple):
    """The result of one attempt: bytes, or a cause. `retry` says whether this run may try again."""

    data: bytes = b""
    cause: str = ""
    permanent: bool = False
    retry: bool = False
    status: int = 0
    wait: float = 0.0  # what Retry-After asks for


class Store:
    """Pictures by content and the log of attempts; one process at a time.

    Raises ValueError where another process holds the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115 (held as long as the store)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"Another process is using {folder}; wait for it or give another --out."
            ) from None
        self._partial = self.folder / "partial"  # files of a killed process, swept here
        self._partial.mkdir(exist_ok=True)
        for path in self._partial.iterdir():
            path.unlink()
        # WAL without an fsync per row survives kill -9; after a power cut a row may be missing, never wrong
        self.log = sqlite3.connect(self.folder / "log.sqlite", isolation_level=None)
        self.log.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
            "CREATE TABLE IF NOT EXISTS attempts(url, wanted, time, status, cause);"
            "CREATE TABLE IF NOT EXISTS pictures(url, wanted, sha256, bytes, PRIMARY KEY(url, wanted));"
            "CREATE TABLE IF NOT EXISTS failures(url, wanted, cause, permanent, PRIMARY KEY(url, wanted));"
        )

    def close(self) -> None:
        """Close the log and let other processes in."""
        self.log.close()
        self._lock.close()

    def path(self, sha256: str) -> Path:
        """The path at which the bytes with that hash are or will be."""
        return self.folder / "objects" / sha256[:2] / sha256

    def put(self, data: bytes) -> str:
        """Keep bytes under their hash (a rename, so a reader sees all or nothing) and return it."""
        sha256 = hashlib.sha256(data).hexdigest()
        partial = self._partial / f"{sha256}.{random.getrandbits(32):x}"
        path = self.path(sha256)
        partial.write_bytes(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, path)
        return sha256

    def record(self, request: Request, outcome: Outcome, sha256: str = "") -> None:
        """Log one attempt and the state it leaves the address in."""
        self.log.execute(
            "INSERT INTO attempts VALUES(?,?,?,?,?)",
            (*request, time.time(), outcome.status, outcome.cause or "ok"),
        )
        if sha256:
            self.log.execute(
                "INSERT OR REPLACE INTO pictures VALUES(?,?,?,?)",
                (*request, sha256, len(outcome.data)),
            )
            self.log.execute("DELETE FROM failures WHERE url=? AND wanted=?", request)
        else:
            self.log.execute(
                "INSERT OR REPLACE INTO failures VALUES(?,?,?,?)",
                (*request, outcome.cause, outcome.permanent),
            )

    def pending(self, requests: Iterable[Request], retry_permanent: bool = False) -> list[Request]:
        """Those whose bytes are not here and that did not fail for good, each once."""
        gone = set(
            self.log.execute(
                "SELECT url, wanted FROM failures WHERE permanent AND NOT ?", (retry_permanent,)
            )
        )
        return [r for r in dict.fromkeys(requests) if tuple(r) not in gone and self.find(r) is None]

    def find(self, request: Request) -> Path | None:
        """The file of a picture, or None. A hash that is wanted is found whichever address it came from."""
        if request.sha256 and self.path(request.sha256).exists():
            return self.path(request.sha256)
        row = self.log.execute(
            "SELECT sha256, bytes FROM pictures WHERE url=? AND wanted=?", request
        ).fetchone()
        if row is None:
            return None
        path = self.path(row[0])
        return path if path.exists() and path.stat().st_size == row[1] else None

    def cause(self, request: Request) -> str:
        """The reason why the last attempt at a picture failed."""
        row = self.log.execute(
            "SELECT cause FROM failures WHERE url=? AND wanted=?", request
        ).fetchone()
        return row[0] if row else "it was never asked for"

    def read(self, request: Request) -> bytes | None:
        """A picture's bytes, or None where it is missing or no longer what it was."""
        path = self.find(request)
        data = path.read_bytes() if path else b""
        if path and hashlib.sha256(data).hexdigest() == path.name:
            return data
        if path:
            path.unlink()  # damaged on this disk: fetched again by the next run
        return None

    def report(self, requests: Iterable[Request], top: int = 10) -> dict:
        """Counts: wanted, reachable, bytes, failures by cause (for good or for now) and the hosts that fail most."""
        wanted = list(dict.fromkeys(requests))
        failures = {(u, w): (c, p) for u, w, c, p in self.log.execute("SELECT * FROM failures")}
        out = {"wanted": len(wanted), "reachable": 0, "bytes": 0}
        causes: dict[str, Counter] = {"permanent": Counter(), "transient": Counter()}
        hosts: dict[str, Counter] = collections.defaultdict(Counter)
        for request in wanted:
            if path := self.find(request):
                out["reachable"] += 1
                out["bytes"] += path.stat().st_size
                continue
            cause, permanent = failures.get(tuple(request), ("not tried", 0))
            causes["permanent" if permanent else "transient"][cause] += 1
            hosts[host_of(request.url)][cause] += 1
        worst = sorted(hosts.items(), key=lambda item: (-item[1].total(), item[0]))[:top]
        return {
            **out,
            **{
                kind: dict(sorted(c.items(), key=lambda i: (-i[1], i[0])))
                for kind, c in causes.items()
            },
            "hosts": {host: dict(counter) for host, counter in worst},
        }


def host_of(url: str) -> str:
    """The host of an address."""
    try:
        return (urlsplit(url).netloc or "(none)").rpartition("@")[2].lower()
    except ValueError:
        return "(none)"
