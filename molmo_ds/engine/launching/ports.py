"""Ports of this machine."""

import random
import socket
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")  # of those that outgoing connections get
SPAN = 12_000  # ports below it, of which one is drawn
TRIES = 100


def free_port() -> int:
    """A port that nothing listens on now, and that no outgoing connection takes before somebody does."""
    try:
        first = int(RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32_768
    draw = random.SystemRandom()
    for _ in range(TRIES):
        port = draw.randrange(max(1_024, first - SPAN), first) if first > 2_048 else 0
        try:
            return _bound(port)
        except OSError:
            continue
    return _bound(0)


def _bound(port: int) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))
        return free.getsockname()[1]
