"""Fetch pictures by address into a store keyed by content, with a log of every attempt.

The store is a folder: `objects/ab/abcd...` holds bytes under their sha256, `log.sqlite` says which address gave
what and why the others gave nothing. A file gets its final name only when it is whole and decodes, so that an error
page never becomes a picture and the process may be killed at any point. Shards are written later, from the store, by
tools/download.py.
"""

from __future__ import annotations

import asyncio
import collections
import email.utils
import fcntl
import hashlib
import json
import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
from tqdm import tqdm
from yarl import URL

from molmo_ds.data.decode import BadSample, load_image, read_size

AGENT = "molmo_ds"
NO_AI = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # directives with a colon
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")  # how pictures start
NOW = frozenset({408, 425, 429, 500, 502, 503, 504})  # tried again in this run; other errors wait for the next one


@dataclass(frozen=True)
class Limits:
    """Limits of requests and of waiting. Times are in seconds."""

    workers: int = 64  # requests under way at once
    per_host: int = 4
    attempts: int = 4  # per address and run, for failures that may pass
    timeout: float = 60.0  # of one request
    backoff: float = 1.0  # doubles with each attempt, times 0.5 to 1.5
    max_wait: float = 120.0  # a longer Retry-After leaves the address to the next run
    max_bytes: int = 50 << 20
    max_redirects: int = 10
    host_failures: int = 20  # in a row without an answer, then a host is left alone in this run


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


@dataclass
class _Host:
    turn: asyncio.Semaphore
    not_before: float = 0.0
    refused: int = 0  # attempts without an answer since the last one


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
            raise ValueError(f"Another process is using {folder}; wait for it or give another --out.") from None
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
            "INSERT INTO attempts VALUES(?,?,?,?,?)", (*request, time.time(), outcome.status, outcome.cause or "ok")
        )
        if sha256:
            self.log.execute("INSERT OR REPLACE INTO pictures VALUES(?,?,?,?)", (*request, sha256, len(outcome.data)))
            self.log.execute("DELETE FROM failures WHERE url=? AND wanted=?", request)
        else:
            self.log.execute(
                "INSERT OR REPLACE INTO failures VALUES(?,?,?,?)", (*request, outcome.cause, outcome.permanent)
            )

    def pending(self, requests: Iterable[Request], retry_permanent: bool = False) -> list[Request]:
        """Those whose bytes are not here and that did not fail for good, each once."""
        gone = set(self.log.execute("SELECT url, wanted FROM failures WHERE permanent AND NOT ?", (retry_permanent,)))
        return [r for r in dict.fromkeys(requests) if tuple(r) not in gone and self.find(r) is None]

    def find(self, request: Request) -> Path | None:
        """The file of a picture, or None. A hash that is wanted is found whichever address it came from."""
        if request.sha256 and self.path(request.sha256).exists():
            return self.path(request.sha256)
        row = self.log.execute("SELECT sha256, bytes FROM pictures WHERE url=? AND wanted=?", request).fetchone()
        if row is None:
            return None
        path = self.path(row[0])
        return path if path.exists() and path.stat().st_size == row[1] else None

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
            hosts[_host(request.url)][cause] += 1
        worst = sorted(hosts.items(), key=lambda item: (-item[1].total(), item[0]))[:top]
        return {
            **out,
            **{kind: dict(sorted(c.items(), key=lambda i: (-i[1], i[0]))) for kind, c in causes.items()},
            "hosts": {host: dict(counter) for host, counter in worst},
        }


def fetch(requests: Iterable[Request], store: Store, limits: Limits = Limits(), retry_permanent: bool = False) -> dict:
    """Fetch what is missing, with a progress bar, and return `Store.report` over all that was asked for."""
    requests = list(dict.fromkeys(requests))
    todo = store.pending(requests, retry_permanent)
    random.Random(0).shuffle(todo)  # neighbours in a data set are often on one host
    with tqdm(total=len(requests), initial=len(requests) - len(todo), unit="picture", desc="fetch") as bar:
        asyncio.run(_Run(store, limits, bar).all(todo))
    return store.report(requests)


def describe(report: dict) -> str:
    """The report as lines of text."""
    share = 100 * report["reachable"] / max(1, report["wanted"])
    lines = [f"{report['reachable']} of {report['wanted']} pictures ({share:.1f} %), {report['bytes'] / 1e6:.1f} MB"]
    for kind, title in (("permanent", "gone for good"), ("transient", "may come back; run again")):
        lines += [f"  {count:8d}  {cause} ({title})" for cause, count in report[kind].items()]
    lines += [f"  {host}: {json.dumps(causes)}" for host, causes in report["hosts"].items()]
    return "\n".join(lines)


class _Run:
    """One run of `fetch`: requests wait for their host's turn first, so that a slow host holds up nobody else."""

    def __init__(self, store: Store, limits: Limits, bar: tqdm) -> None:
        self.store = store
        self.limits = limits
        self.bar = bar
        self.hosts: dict[str, _Host] = collections.defaultdict(lambda: _Host(asyncio.Semaphore(limits.per_host)))
        self.slots = asyncio.Semaphore(limits.workers)
        self.window = asyncio.Semaphore(200 * limits.workers)  # addresses that wait in memory

    async def all(self, todo: list[Request]) -> None:
        session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self.limits.timeout),
            connector=aiohttp.TCPConnector(ssl=True, ttl_dns_cache=600, keepalive_timeout=2, limit=self.limits.workers),
            headers={"User-Agent": f"{AGENT} (research; obeys X-Robots-Tag)", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        async with session, asyncio.TaskGroup() as group:
            for request in todo:
                await self.window.acquire()
                group.create_task(self.one(session, self.hosts[_host(request.url)], request))

    async def one(self, session: aiohttp.ClientSession, host: _Host, request: Request) -> None:
        async with host.turn:
            await self.attempts(session, host, request)
        self.window.release()
        self.bar.update()

    async def attempts(self, session: aiohttp.ClientSession, host: _Host, request: Request) -> None:
        for attempt in range(self.limits.attempts):
            wait = host.not_before - time.monotonic()
            if wait > self.limits.max_wait:
                return self.store.record(request, Outcome(cause="host asks to wait"))
            if host.refused >= self.limits.host_failures:
                return self.store.record(request, Outcome(cause="host left alone"))
            await asyncio.sleep(max(0.0, wait))
            async with self.slots:
                outcome = await attempt_once(session, request, self.limits)
            host.refused = host.refused + 1 if outcome.cause in ("no connection", "timeout") else 0
            sha256 = "" if outcome.cause else await asyncio.to_thread(self.store.put, outcome.data)
            self.store.record(request, outcome, sha256)
            if not outcome.retry:
                return None
            if outcome.wait:
                host.not_before = max(host.not_before, time.monotonic() + outcome.wait)
            elif attempt + 1 < self.limits.attempts:
                await asyncio.sleep(self.limits.backoff * 2**attempt * random.uniform(0.5, 1.5))
        return None


async def attempt_once(session: aiohttp.ClientSession, request: Request, limits: Limits) -> Outcome:
    """One GET, judged: whole, allowed, a picture, and the one that was asked for."""
    try:
        if urlsplit(request.url).scheme not in ("http", "https"):
            return Outcome(cause="not a web address", permanent=True)
        plain = request.url.isascii() and " " not in request.url
        url = URL(request.url, encoded=plain and "%" in request.url)  # a signed address must not be quoted again
        async with session.get(url, max_redirects=limits.max_redirects) as answer:
            if answer.status in (404, 410):
                return Outcome(cause=f"HTTP {answer.status}", permanent=True, status=answer.status)
            if answer.status != 200:
                wait = _retry_after(answer.headers.get("Retry-After", ""))
                return Outcome(
                    cause=f"HTTP {answer.status}", retry=answer.status in NOW, status=answer.status, wait=wait
                )
            if refuses_ai(answer.headers.getall("X-Robots-Tag", [])):
                return Outcome(cause="X-Robots-Tag", permanent=True, status=200)
            if (answer.content_length or 0) > limits.max_bytes:
                return Outcome(cause="too large", permanent=True, status=200)
            body = bytearray()
            async for chunk in answer.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > limits.max_bytes:
                    return Outcome(cause="too large", permanent=True, status=200)
            if answer.content_length is not None and len(body) != answer.content_length:
                return Outcome(cause="short body", retry=True, status=200)
            return await asyncio.to_thread(judge, bytes(body), request.sha256)
    except TimeoutError:
        return Outcome(cause="timeout", retry=True)
    except aiohttp.ClientPayloadError:
        return Outcome(cause="short body", retry=True, status=200)
    except aiohttp.ClientConnectorCertificateError:
        return Outcome(cause="TLS certificate")
    except aiohttp.TooManyRedirects:
        return Outcome(cause="too many redirects")
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError):
        return Outcome(cause="not a web address", permanent=True)
    except aiohttp.ClientConnectorError:
        return Outcome(cause="no connection", retry=True)
    except (aiohttp.ClientError, OSError) as error:
        return Outcome(cause=f"dropped ({type(error).__name__})", retry=True)


def judge(body: bytes, wanted: str) -> Outcome:
    """Is this a whole picture, and the one that was wanted?"""
    if not body:
        return Outcome(cause="short body", retry=True, status=200)
    try:
        read_size(body)
    except BadSample:
        if body.startswith(MAGIC):
            return Outcome(cause="damaged picture", retry=True, status=200)
        html = body[:512].lstrip().lower().startswith((b"<!doctype html", b"<html", b"<head", b"<body"))
        return Outcome(cause="HTML instead of a picture" if html else "not a picture", permanent=True, status=200)
    try:
        load_image(body)  # as training will: a cut file has a good header
    except BadSample:
        return Outcome(cause="damaged picture", retry=True, status=200)
    if wanted and hashlib.sha256(body).hexdigest() != wanted:
        return Outcome(cause="hash mismatch", permanent=True, status=200)
    return Outcome(data=body, status=200)


def refuses_ai(headers: list[str]) -> bool:
    """Whether X-Robots-Tag forbids this use, to everybody or to us by name (`otherbot: noai` speaks to another)."""
    for header in headers:
        words = [word.strip().lower() for word in header.split(",")]
        agent, colon, first = words[0].partition(":")
        if colon and agent not in VALUED:
            if agent.strip() != AGENT:
                continue
            words[0] = first.strip()
        if NO_AI & set(words):
            return True
    return False


def _retry_after(value: str) -> float:
    """Seconds from a Retry-After header: a number or a date; 0 where there is none."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _host(url: str) -> str:
    try:
        return (urlsplit(url).netloc or "(none)").rpartition("@")[2].lower()
    except ValueError:
        return "(none)"
