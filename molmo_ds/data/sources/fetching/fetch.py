"""Fetch pictures by address into a store (store.py).

Nothing is kept that does not decode, so that an error page never becomes a picture. Shards are written later, from the
store, by tools/download.py.
"""

from __future__ import annotations

import asyncio
import collections
import email.utils
import hashlib
import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
from tqdm import tqdm
from yarl import URL

from molmo_ds.data.decode import BadSample, load_image, read_size
from molmo_ds.data.sources.fetching.store import Outcome, Request, Store, host_of

AGENT = "molmo_ds"
NO_AI = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
VALUED = (
    "unavailable_after",
    "max-snippet",
    "max-image-preview",
    "max-video-preview",
)  # directives with a colon
MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"GIF8",
    b"RIFF",
    b"BM",
    b"II*\0",
    b"MM\0*",
)  # how pictures start
# tried again in this run; other errors wait for the next one
NOW = frozenset({408, 425, 429, 500, 502, 503, 504})


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


@dataclass
class _Host:
    turn: asyncio.Semaphore
    not_before: float = 0.0
    refused: int = 0  # attempts without an answer since the last one


def fetch(
    requests: Iterable[Request],
    store: Store,
    limits: Limits = Limits(),
    retry_permanent: bool = False,
) -> dict:
    """Fetch what is missing, with a progress bar, and return `Store.report` over all that was asked for."""
    requests = list(dict.fromkeys(requests))
    todo = store.pending(requests, retry_permanent)
    random.Random(0).shuffle(todo)  # neighbours in a data set are often on one host
    with tqdm(
        total=len(requests), initial=len(requests) - len(todo), unit="picture", desc="fetch"
    ) as bar:
        asyncio.run(_Run(store, limits, bar).all(todo))
    return store.report(requests)


def describe(report: dict) -> str:
    """The report as lines of text."""
    share = 100 * report["reachable"] / max(1, report["wanted"])
    lines = [
        f"{report['reachable']} of {report['wanted']} pictures ({share:.1f} %), {report['bytes'] / 1e6:.1f} MB"
    ]
    for kind, title in (("permanent", "gone for good"), ("transient", "may come back; run again")):
        lines += [f"  {count:8d}  {cause} ({title})" for cause, count in report[kind].items()]
    lines += [f"  {host}: {json.dumps(causes)}" for host, causes in report["hosts"].items()]
    return "\n".join(lines)


class _Run:
    """One run of `fetch`: requests wait for their host's turn first, so that a slow host delays no other."""

    def __init__(self, store: Store, limits: Limits, bar: tqdm) -> None:
        self.store = store
        self.limits = limits
        self.bar = bar
        self.hosts: dict[str, _Host] = collections.defaultdict(
            lambda: _Host(asyncio.Semaphore(limits.per_host))
        )
        self.slots = asyncio.Semaphore(limits.workers)
        self.window = asyncio.Semaphore(200 * limits.workers)  # addresses that wait in memory

    async def all(self, todo: list[Request]) -> None:
        session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self.limits.timeout),
            connector=aiohttp.TCPConnector(
                ssl=True, ttl_dns_cache=600, keepalive_timeout=2, limit=self.limits.workers
            ),
            headers={
                "User-Agent": f"{AGENT} (research; obeys X-Robots-Tag)",
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        async with session, asyncio.TaskGroup() as group:
            for request in todo:
                await self.window.acquire()
                group.create_task(self.one(session, self.hosts[host_of(request.url)], request))

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
        # a signed address must not be quoted again
        url = URL(request.url, encoded=plain and "%" in request.url)
        async with session.get(url, max_redirects=limits.max_redirects) as answer:
            if answer.status in (404, 410):
                return Outcome(cause=f"HTTP {answer.status}", permanent=True, status=answer.status)
            if answer.status != 200:
                wait = _retry_after(answer.headers.get("Retry-After", ""))
                return Outcome(
                    cause=f"HTTP {answer.status}",
                    retry=answer.status in NOW,
                    status=answer.status,
                    wait=wait,
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
        html = (
            body[:512]
            .lstrip()
            .lower()
            .startswith((b"<!doctype html", b"<html", b"<head", b"<body"))
        )
        return Outcome(
            cause="HTML instead of a picture" if html else "not a picture",
            permanent=True,
            status=200,
        )
    try:
        load_image(body)  # as training will: a cut file has a good header
    except BadSample:
        return Outcome(cause="damaged picture", retry=True, status=200)
    if wanted and hashlib.sha256(body).hexdigest() != wanted:
        return Outcome(cause="hash mismatch", permanent=True, status=200)
    return Outcome(data=body, status=200)


def refuses_ai(headers: list[str]) -> bool:
    """Whether X-Robots-Tag forbids this use, to all or to us by name (`otherbot: noai` speaks to another)."""
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
