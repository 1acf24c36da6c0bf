"""The link between the front and the first rank of a replica: frames of JSON and bytes of a prompt; never pickle.

The rank dials in and proves with an HMAC of the front's nonce that it knows the shared secret. A frame is two lengths
(uint32, little-endian), JSON, bytes. To the front go {hello}, {pieces}, {failed}, {alive}; to the rank {nonce}, {ask},
{drop}.
"""

import asyncio
import hmac
import json
import secrets
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

from molmo_ds.serve.address import Address

HEAD = struct.Struct("<II")
GREETING_BYTES = 4096  # all that is read of a peer that has not proved the secret
MOST_BYTES = 1 << 30
REDIAL_SECONDS = 0.25  # between two tries

Words = dict[str, Any]


def pack(words: Words, data: bytes = b"") -> bytes:
    """A frame."""
    text = json.dumps(words).encode()
    return HEAD.pack(len(text), len(data)) + text + data


def unpack(frames: bytes) -> Iterator[tuple[Words, bytes]]:
    """Whole frames, one after the other."""
    while frames:
        length, (words, data) = _first(frames)
        yield words, data
        frames = frames[length:]


def _first(frames: bytes) -> tuple[int, tuple[Words, bytes]]:
    words, data = HEAD.unpack_from(frames)
    middle = HEAD.size + words
    return middle + data, (json.loads(frames[HEAD.size : middle]), frames[middle : middle + data])


async def read_frame(reader: asyncio.StreamReader, most: int = MOST_BYTES) -> tuple[Words, bytes]:
    """The next frame; ConnectionError where it is longer than `most` bytes or the peer is gone."""
    try:
        words, data = HEAD.unpack(await reader.readexactly(HEAD.size))
        if words + data > most:
            raise ConnectionError(f"It sent a frame of {words + data} bytes, more than {most}.")
        return json.loads(await reader.readexactly(words)), await reader.readexactly(data)
    except asyncio.IncompleteReadError:
        raise ConnectionError("It hung up.") from None
    except ValueError:
        raise ConnectionError("It speaks another language.") from None


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: str) -> Words:
    """The front's end of the greeting: what the rank says of itself; ConnectionError where it lacks the secret."""
    nonce = secrets.token_hex(16)
    writer.write(pack({"nonce": nonce}))
    words, _ = await read_frame(reader, GREETING_BYTES)
    if not isinstance(words, dict) or not hmac.compare_digest(
        str(words.get("hello")), proof(secret, nonce)
    ):
        raise ConnectionError("It does not know the secret of this server.")
    return words


def proof(secret: str, nonce: str) -> str:
    """The answer to a nonce that needs the secret."""
    return hmac.new(secret.encode(), nonce.encode(), "sha256").hexdigest()


class Dialled:
    """The end of a replica's first rank: a socket to the front, dialled again after a loss.

    ValueError from `receive` where the front has not answered for `patience` seconds.
    """

    def __init__(
        self, address: Address, secret: str, patience: float, replica: int = 0, replicas: int = 1
    ):
        self.address = address
        self.place = {"replica": replica, "replicas": replicas}
        self.secret = secret
        self.patience = patience
        self.socket: socket.socket | None = None
        self.lost_at = time.monotonic()
        self.sent_at = 0.0
        self.buffer = bytearray()

    def receive(self, seconds: float) -> tuple[bytes, bool]:
        """(whole frames that came within so many seconds, whether the front is another one than at the last call)."""
        if self.socket is None:
            return b"", self._dial(seconds)
        try:
            while select.select([self.socket], [], [], seconds)[0]:
                data = self.socket.recv(1 << 20)
                if not data:
                    raise ConnectionError("the front closed the link")
                self.buffer += data
                seconds = 0.0
        except OSError:
            self._lose()
            return b"", False
        return self._whole(), False

    def send(self, words: Words) -> None:
        """Tell the front; where it is gone nothing is told, since `receive` will dial."""
        if self.socket is None:
            return
        try:
            self.socket.sendall(pack(words))
            self.sent_at = time.monotonic()
        except OSError:  # also a front that has not read for `patience` seconds
            self._lose()

    def _whole(self) -> bytes:
        end = 0
        while len(self.buffer) - end >= HEAD.size:
            length = HEAD.size + sum(HEAD.unpack_from(self.buffer, end))
            if len(self.buffer) - end < length:
                break
            end += length
        frames = bytes(self.buffer[:end])
        del self.buffer[:end]
        return frames

    def _dial(self, seconds: float) -> bool:
        if time.monotonic() - self.lost_at > self.patience:
            raise ValueError(
                f"The front at {self.address} has not answered for {self.patience:.0f} s; is it running?"
            )
        try:
            self.socket = socket.create_connection(self.address, timeout=self.patience)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            nonce = self._greeting()["nonce"]
            self.socket.sendall(pack({"hello": proof(self.secret, nonce), **self.place}))
        except (OSError, KeyError, ValueError):
            self.close()
            time.sleep(min(seconds, REDIAL_SECONDS))
            return False
        self.sent_at = time.monotonic()
        return True

    def _greeting(self) -> Words:
        while not (frame := self._whole()):
            data = self.socket.recv(GREETING_BYTES)
            if not data:
                raise ConnectionError("the front closed the link")
            self.buffer += data
        return next(unpack(frame))[0]

    def _lose(self) -> None:
        self.close()
        self.lost_at = time.monotonic()

    def close(self) -> None:
        """Hang up."""
        if self.socket is not None:
            self.socket.close()
        self.socket = None
        self.buffer.clear()
