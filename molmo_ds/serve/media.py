"""The pictures of a request as the bytes of a file: from data: URLs, or from hosts that are allowed."""

import asyncio
import base64
import binascii
import re

import aiohttp
from yarl import URL

from molmo_ds.serve.protocol import ImageURL, Refused

FETCH_SECONDS = 20
_DATA = re.compile(r"data:image/[\w.+-]+(;[\w.+=-]+)*;base64,", re.ASCII)


class Media:
    """Reads pictures; `hosts` are the only ones that are asked for a URL, `most` the bytes that one may have."""

    def __init__(self, hosts: tuple[str, ...], most: int):
        self.hosts = {host.lower() for host in hosts}
        self.most = most

    async def read(self, pictures: list[ImageURL]) -> list[bytes]:
        """The pictures' bytes, in order. Refused with a sentence where one is not to be had."""
        return await asyncio.gather(*(self._read(picture.url) for picture in pictures))

    async def _read(self, url: str) -> bytes:
        if url[:5].lower() == "data:":
            return decode(url)
        try:
            target = URL(url)
        except ValueError:
            raise Refused(400, f"The URL of a picture cannot be read: {url[:60]!r}.") from None
        if target.scheme not in ("http", "https") or (target.host or "").lower() not in self.hosts:
            raise Refused(
                400,
                f"The picture {url[:60]!r} is no data: URL, and this server fetches only from hosts that"
                " --allowed-media-domains names; send data:image/png;base64, and the file in base64.",
            )
        return await self._fetch(target)

    async def _fetch(self, url: URL) -> bytes:
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=FETCH_SECONDS)
                ) as session,
                # it could lead to a host that is not allowed
                session.get(url, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise Refused(400, f"{url.host} answered {response.status} for a picture.")
                data = bytearray()
                async for piece in response.content.iter_chunked(1 << 16):
                    data += piece
                    if len(data) > self.most:
                        raise Refused(
                            413, f"The picture of {url.host} has more than {self.most} bytes."
                        )
                return bytes(data)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Refused(
                400, f"{url.host} did not give a picture: {type(error).__name__}."
            ) from None


def decode(url: str) -> bytes:
    """The bytes of a data: URL; Refused (400) where it holds no picture in base64."""
    head = _DATA.match(url)
    if head is None:
        raise Refused(
            400,
            f"A picture is {url[:30]!r}..., but must be data:image/png;base64, and the file in base64.",
        )
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"A picture is no base64: {error}.") from None
