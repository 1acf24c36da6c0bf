"""The pictures and videos of a request as the bytes of files: from data: URLs, or from hosts that are allowed."""

import asyncio
import base64
import binascii
import re
from collections.abc import Sequence
from typing import Literal

import aiohttp
from yarl import URL

from molmo_ds.eval.clients.chat import FRAMES
from molmo_ds.serve.protocol import Refused

FETCH_SECONDS = 20
Kind = Literal["picture", "video"]
# a GIF may be either
_DATA = {
    "picture": re.compile(r"data:(image/[\w.+-]+)(;[\w.+=-]+)*;base64,", re.ASCII),
    "video": re.compile(r"data:(video/[\w.+-]+|image/gif)(;[\w.+=-]+)*;base64,", re.ASCII),
}
_EXAMPLE = {"picture": "image/png", "video": "video/mp4"}


class Media:
    """Reads files; `hosts` are the only ones that are asked for a URL, `most` the bytes that one may have."""

    def __init__(self, hosts: tuple[str, ...], most: int):
        self.hosts = {host.lower() for host in hosts}
        self.most = most

    async def read(self, urls: Sequence[str], kind: Kind = "picture") -> list[bytes]:
        """The files' bytes, in order; a video of type FRAMES is several. Refused with a sentence where one lacks."""
        read = await asyncio.gather(*(self._read(url, kind) for url in urls))
        return [data for files in read for data in files]

    async def _read(self, url: str, kind: Kind) -> list[bytes]:
        if url[:5].lower() == "data:":
            return decode(url, kind)
        try:
            target = URL(url)
        except ValueError:
            raise Refused(400, f"The URL of a {kind} cannot be read: {url[:60]!r}.") from None
        if target.scheme not in ("http", "https") or (target.host or "").lower() not in self.hosts:
            raise Refused(
                400,
                f"The {kind} {url[:60]!r} is no data: URL, and this server fetches only from hosts that"
                f" --allowed-media-domains names; send data:{_EXAMPLE[kind]};base64, and the file in base64.",
            )
        return [await self._fetch(target, kind)]

    async def _fetch(self, url: URL, kind: Kind) -> bytes:
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=FETCH_SECONDS)
                ) as session,
                # it could lead to a host that is not allowed
                session.get(url, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise Refused(400, f"{url.host} answered {response.status} for a {kind}.")
                data = bytearray()
                async for piece in response.content.iter_chunked(1 << 16):
                    data += piece
                    if len(data) > self.most:
                        raise Refused(
                            413, f"The {kind} of {url.host} has more than {self.most} bytes."
                        )
                return bytes(data)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Refused(
                400, f"{url.host} did not give a {kind}: {type(error).__name__}."
            ) from None


def decode(url: str, kind: Kind = "picture") -> list[bytes]:
    """The bytes of a data: URL, of each frame of one of type FRAMES; Refused (400) where it holds none in base64."""
    head = _DATA[kind].match(url)
    if head is None:
        raise Refused(
            400,
            f"A {kind} is {url[:30]!r}..., but must be data:{_EXAMPLE[kind]};base64, and the file in base64.",
        )
    whole = url[head.end() :]
    try:
        parts = whole.split(",") if head.group(1) == FRAMES else [whole]
        return [base64.b64decode(part, validate=True) for part in parts]
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"A {kind} is no base64: {error}.") from None
