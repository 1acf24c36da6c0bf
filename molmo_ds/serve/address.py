"""HOST:PORT, as the front listens on it and rank 0 dials it."""

from typing import NamedTuple


class Address(NamedTuple):
    """A host and a port; what sockets take as an address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def read_address(text: str) -> Address:
    """HOST:PORT; ValueError with a sentence where it is none."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text} is no address; write HOST:PORT, such as 127.0.0.1:8001.")
    return Address(host, int(port))
