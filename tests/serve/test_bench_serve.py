"""The load test runs and counts what the server counts; its figures are no test."""

import asyncio
import os

from molmo_ds.testing.parrot import Parrot
from molmo_ds.testing.scripts import load
from molmo_ds.testing.serving import Server

bench_serve = load("tools/bench", "bench_serve")


def test_load(server: Server, parrot: Parrot) -> None:
    before = len(parrot.asked)
    seen = asyncio.run(bench_serve.load(server.url, 10, 0.5, 6, [os.getpid()]))
    assert set(seen.codes) == {200, 429} and seen.codes[200] == len(parrot.asked) - before == len(
        seen.first
    )
    # six tokens each, of which the first is a space, which is not shown
    assert len(seen.next) == 4 * len(seen.first)
    assert len(seen.memory) == 2 and len(seen.rows()) == 4
