"""The downloader against a web server on this machine that misbehaves in each way pictures on the web do."""

import asyncio
import hashlib
import io
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from picture_server import Server, picture
from PIL import Image

from molmo_ds.data.sources.fetching.fetch import AGENT, Limits, describe, fetch, judge, refuses_ai
from molmo_ds.data.sources.fetching.store import Outcome, Request, Store

QUICK = Limits(
    workers=8, per_host=4, attempts=2, timeout=2.0, backoff=0.01, max_wait=5, max_bytes=200_000
)


@pytest.fixture
def server() -> Iterator[Server]:
    thing = Server()
    yield thing
    thing.stop()


def test_every_cause(server: Server, tmp_path: Path) -> None:
    # case: (cause or None for success, permanent, requests the server sees with 2 attempts)
    expected = {
        "good": (None, None, 1),
        "redirect": (None, None, 1),
        "busy_then_good": (None, None, 2),
        "robots_other": (None, None, 1),
        "missing": ("HTTP 404", True, 1),
        "gone": ("HTTP 410", True, 1),
        "html": ("HTML instead of a picture", True, 1),
        "text": ("not a picture", True, 1),
        "robots": ("X-Robots-Tag", True, 1),
        "large": ("too large", True, 1),
        "large_hidden": ("too large", True, 1),
        "forbidden": ("HTTP 403", False, 1),
        "circle": ("too many redirects", False, QUICK.max_redirects),
        "busy": ("HTTP 503", False, 2),
        "slow": ("timeout", False, 2),
        "short": ("short body", False, 2),
        "short_no_length": ("damaged picture", False, 2),
        "empty": ("short body", False, 2),
    }
    requests = {case: Request(server.url(case)) for case in expected}
    store = Store(tmp_path / "store")
    report = fetch(requests.values(), store, QUICK)
    failures = {u: (c, bool(p)) for u, _, c, p in store.log.execute("SELECT * FROM failures")}
    for case, (cause, permanent, hits) in expected.items():
        data = store.read(requests[case])
        if cause is None:
            Image.open(io.BytesIO(data)).load()
            assert requests[case].url not in failures
        else:
            assert data is None, case
            assert failures[requests[case].url] == (cause, permanent), case
        assert server.hits[f"/{case}"] == hits, case
    assert store.read(requests["redirect"]) == picture(7)
    assert report["wanted"] == 18
    assert report["reachable"] == 4
    assert report["bytes"] == sum(len(picture(n)) for n in (0, 7, 3, 8))
    assert report["permanent"] == {
        "too large": 2,
        "HTML instead of a picture": 1,
        "HTTP 404": 1,
        "HTTP 410": 1,
        "X-Robots-Tag": 1,
        "not a picture": 1,
    }
    assert report["transient"]["short body"] == 2
    assert sum(report["transient"].values()) == 7
    assert set(report["hosts"]) == {f"127.0.0.1:{server.port}"}
    assert sum(report["hosts"][f"127.0.0.1:{server.port}"].values()) == 14
    assert describe(report).startswith("4 of 18 pictures (22.2 %)")
    # nothing but pictures lies in the store
    kept = [p for p in (tmp_path / "store" / "objects").rglob("*") if p.is_file()]
    assert len(kept) == 4
    for path in kept:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        Image.open(path).load()

    # the next run leaves the permanent ones alone, tries the others again, and heals
    before = server.hits.copy()
    server.on_busy = server.on_good
    again = fetch(requests.values(), store, QUICK)
    assert again["reachable"] == 5
    for case, (cause, permanent, _) in expected.items():
        assert (server.hits[f"/{case}"] > before[f"/{case}"]) == (
            cause is not None and not permanent
        ), case
    assert again["transient"] == {k: v for k, v in report["transient"].items() if k != "HTTP 503"}
    # unless told otherwise
    server.on_missing = server.on_good
    assert fetch([requests["missing"]], store, QUICK, retry_permanent=True)["reachable"] == 1
    store.close()


def test_retry_after(server: Server, tmp_path: Path) -> None:
    store = Store(tmp_path)
    tomorrow = [Request(server.url(f"come_tomorrow/{n}", "localhost")) for n in range(6)]
    soon = Request(server.url("too_many"))
    report = fetch(
        [soon, *tomorrow],
        store,
        Limits(workers=8, per_host=1, attempts=3, backoff=0.01, max_wait=5),
    )
    asked = [when for path, when in server.times if path == "/too_many"]
    assert len(asked) == 2
    assert 1.0 <= asked[1] - asked[0] < 10.0
    assert store.read(soon) == picture(4)
    # a host that asks for a day is asked once; the rest waits for another run
    assert sum(server.hits[f"/come_tomorrow/{n}"] for n in range(6)) == 1
    assert report["transient"] == {"host asks to wait": 6}
    store.close()


def test_hash(server: Server, tmp_path: Path) -> None:
    store = Store(tmp_path)
    right = Request(server.url("good/1"), hashlib.sha256(picture(1)).hexdigest())
    wrong = Request(server.url("good/1"), hashlib.sha256(picture(2)).hexdigest())
    report = fetch([right, wrong], store, QUICK)
    assert report["permanent"] == {"hash mismatch": 1}
    assert store.read(right) == picture(1)
    assert store.read(wrong) is None
    assert server.hits["/good/1"] == 2
    # the wanted bytes are found wherever they come from, without another request
    fetch([Request(server.url("good/2"))], store, QUICK)
    assert store.read(wrong) == picture(2)
    # a file damaged on disk is not handed out and is fetched again
    path = store.find(right)
    path.write_bytes(b"x" * path.stat().st_size)
    assert store.read(right) is None
    assert fetch([right], store, QUICK)["reachable"] == 1
    assert store.read(right) == picture(1)
    store.close()


def test_a_stopped_write_leaves_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    monkeypatch.setattr(
        os, "replace", lambda source, target: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    # where a kill would hit hardest: written, not yet renamed
    with pytest.raises(KeyboardInterrupt):
        store.put(picture(1))
    assert not [p for p in (tmp_path / "objects").rglob("*") if p.is_file()]
    store.close()


def test_hosts(server: Server, tmp_path: Path) -> None:
    store = Store(tmp_path)
    polite = Limits(workers=50, per_host=2, attempts=2, backoff=0.01, host_failures=4)
    requests = [Request(server.url(f"lingering/{n}")) for n in range(12)]
    closed = [Request(f"http://127.0.0.1:1/{n}") for n in range(30)]  # nothing listens there
    signed = [
        Request(server.url("signed/5?key=a%2Fb%2Bc%3D")),
        Request(server.url("good/6?name=two words")),
    ]
    odd = [Request("ftp://example.org/a.jpg"), Request("http://[broken/a.jpg"), Request("")]
    report = fetch([*requests, *closed, *signed, *odd], store, polite)
    assert server.peak == 2
    assert report["reachable"] == 14
    assert report["permanent"] == {"not a web address": 3}
    tries = store.log.execute(
        "SELECT count(*) FROM attempts WHERE cause = 'no connection'"
    ).fetchone()[0]
    assert 4 <= tries <= 5  # then the host is left alone; two at a time may pass the limit by one
    assert sum(report["transient"].values()) == 30
    assert report["transient"]["host left alone"] >= 26
    assert list(report["hosts"])[0] == "127.0.0.1:1"
    with pytest.raises(ValueError, match="Another process is using"):
        Store(tmp_path)
    store.close()


def test_tls_is_verified(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2 -subj /CN=localhost"
    subprocess.run(command.split(), check=True, capture_output=True, timeout=30)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def main() -> None:
        async def answer(request: web.Request) -> web.Response:
            return web.Response(body=picture())

        app = web.Application()
        app.router.add_get("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        url = f"https://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/"
        try:
            report = await asyncio.to_thread(
                lambda: fetch([Request(url)], Store(tmp_path / "store"), QUICK)
            )
            assert report["transient"] == {"TLS certificate": 1}
        finally:
            await runner.cleanup()

    asyncio.run(main())


CHILD = """
import sys
from molmo_ds.data.sources.fetching.fetch import Limits, fetch
from molmo_ds.data.sources.fetching.store import Request, Store
store = Store(sys.argv[1])
fetch([Request(f"{sys.argv[2]}/{n}") for n in range(200)], store, Limits(workers=2, per_host=2))
"""


def test_kill_and_resume(server: Server, tmp_path: Path) -> None:
    url = server.url("lingering")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), url],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    deadline = time.monotonic() + 30
    while sum(server.hits.values()) < 25 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    time.sleep(0.3)  # what the killed process had sent arrives
    first = server.hits.copy()
    assert 25 <= len(first) < 200
    (tmp_path / "partial" / "left-behind").write_bytes(b"half")
    store = Store(tmp_path)
    requests = [Request(f"{url}/{n}") for n in range(200)]
    assert not list((tmp_path / "partial").iterdir())
    kept = 200 - len(store.pending(requests))
    # what had arrived is there; at most the two under way and the two after them are lost
    assert kept >= 20
    report = fetch(requests, store, QUICK)
    assert report["reachable"] == 200
    # only what was missing is asked for
    assert sum(server.hits.values()) - sum(first.values()) == 200 - kept
    assert [store.read(r) for r in requests] == [picture(n) for n in range(200)]
    store.close()


def test_robots_header() -> None:
    assert refuses_ai(["noai"])
    assert refuses_ai(["all", "max-snippet: 20, NoImageAI"])
    assert refuses_ai(["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"])
    assert refuses_ai([f"{AGENT}: noai"])
    assert not refuses_ai([])
    assert not refuses_ai(["nofollow, nosnippet"])
    assert not refuses_ai(["otherbot: noai, noindex"])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_judge(kind: str) -> None:
    body = picture(5, kind=kind)
    assert judge(body, "") == Outcome(data=body, status=200)
    assert judge(body, hashlib.sha256(body).hexdigest()).data == body
    assert judge(body, "0" * 64).cause == "hash mismatch"
    cut = judge(body[: len(body) * 2 // 3], hashlib.sha256(body).hexdigest())
    assert cut.data == b""
    assert cut.retry
