"""Load on a server: clients that ask at once and again, wait where they are told to, and note what they saw.

URL [--clients 64] [--seconds 600] [--tokens 32] [--pids PID,PID], for example, of tools/serve.py FOLDER --queue 8,
    http://127.0.0.1:8000 --clients 64 --seconds 600 --pids $(pgrep -d, -f molmo_ds.serve)

Prints the answers by status, the 50th and 95th percentile of the seconds until the first token and between tokens, and
the memory of the given processes after a tenth of the time and at the end.
"""

import argparse
import asyncio
import base64
import io
import json
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import psutil
from PIL import Image


@dataclass
class Seen:
    """What the clients noted."""

    codes: Counter = field(default_factory=Counter)
    # seconds from an admitted question to its first token
    first: list[float] = field(default_factory=list)
    next: list[float] = field(default_factory=list)  # seconds from a token to the next
    memory: list[int] = field(default_factory=list)  # bytes of all processes, twice

    def rows(self) -> list[str]:
        """The report."""
        lines = [
            f"answers: {', '.join(f'{count} x {code}' for code, count in sorted(self.codes.items()))}"
        ]
        for name in ("first", "next"):
            values = getattr(self, name)
            if values:
                half, most = np.percentile(values, (50, 95))
                lines.append(
                    f"{name} token: p50 {half * 1e3:.1f} ms, p95 {most * 1e3:.1f} ms of {len(values)}"
                )
        if self.memory:
            lines.append(f"memory: {', '.join(f'{size / 2**20:.1f} MiB' for size in self.memory)}")
        return lines


async def load(url: str, clients: int, seconds: float, tokens: int, pids: list[int]) -> Seen:
    """Ask for so many seconds."""
    seen = Seen()
    end = time.monotonic() + seconds
    connections = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connections) as session:
        watch = asyncio.create_task(measure(seen, pids, seconds / 10))
        await asyncio.gather(
            *(client(session, url, number, end, tokens, seen) for number in range(clients))
        )
        await watch
    if pids:
        seen.memory.append(memory_of(pids))
    return seen


async def measure(seen: Seen, pids: list[int], seconds: float) -> None:
    """The memory when everything was used once."""
    await asyncio.sleep(seconds)
    if pids:
        seen.memory.append(memory_of(pids))


async def client(
    session: aiohttp.ClientSession, url: str, number: int, end: float, tokens: int, seen: Seen
) -> None:
    """One client: every third question is about a picture."""
    picture = (
        [{"type": "image_url", "image_url": {"url": data_url(number)}}] if number % 3 == 0 else []
    )
    turn = 0
    while time.monotonic() < end:
        turn += 1
        content = [*picture, {"type": "text", "text": f"How many, client {number}, turn {turn}?"}]
        body = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": tokens,
            "stream": True,
        }
        began = time.monotonic()
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            seen.codes[response.status] += 1
            if response.status != 200:
                await response.read()
                await asyncio.sleep(float(response.headers.get("Retry-After", 1)))
                continue
            await read(response, began, seen)


async def read(response: aiohttp.ClientResponse, began: float, seen: Seen) -> None:
    """Note when the tokens come."""
    last = None
    async for line in response.content:
        if not line.startswith(b"data: {") or not json.loads(line[6:])["choices"][0]["delta"].get(
            "content"
        ):
            continue
        now = time.monotonic()
        if last is None:
            seen.first.append(now - began)
        else:
            seen.next.append(now - last)
        last = now


def data_url(seed: int) -> str:
    """A small picture of noise."""
    stream = io.BytesIO()
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (60, 80, 3), np.uint8)).save(
        stream, "PNG"
    )
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def memory_of(pids: list[int]) -> int:
    """Bytes that the processes hold for themselves."""
    return sum(psutil.Process(pid).memory_full_info().uss for pid in pids)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, load, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer, at most")
    parser.add_argument("--pids", default="", help="processes whose memory is measured")
    given = parser.parse_args(arguments)
    pids = [int(word) for word in given.pids.split(",") if word]
    seen = asyncio.run(
        load(given.url.rstrip("/"), given.clients, given.seconds, given.tokens, pids)
    )
    print("\n".join(seen.rows()))


if __name__ == "__main__":
    main()
