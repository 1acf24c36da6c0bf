"""Stores on loopback: moto's S3 and an emulator of Google's, each a process of its own, behind a wire that can fail."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1")
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def serve_s3(port: int) -> None:
    """Answer as S3 does, for ever."""
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    app = DomainDispatcherApplication(create_backend_app)
    make_server("127.0.0.1", port, app, threaded=True).serve_forever()


def serve_gcs(port: int) -> None:
    """Answer as Google's store does, for ever."""
    from http.server import ThreadingHTTPServer

    from gcp_storage_emulator import server

    # its own answers one connection after the other: a request that is held would hold all
    server.server.HTTPServer = ThreadingHTTPServer
    server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket").run()


@contextlib.contextmanager
def served(kind: str) -> Iterator["Wire"]:
    """A server, "s3" or "gcs", in a process of its own, and the wire to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, __file__, kind, str(port)],
        env={**os.environ, "S3_UPLOAD_PART_MIN_SIZE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        wire = Wire(port)
        yield wire
        wire.close()
    finally:
        process.kill()
        process.wait()


class Wire:
    """Hands requests on to a server, except for those that meet a fault.

    `faults` are (pattern of "METHOD path", kind), each for one request: "503", "drop" (the wire breaks in the middle of
    the request), "hold" (nothing happens until `let_go` is set).
    """

    def __init__(self, port: int, listener: socket.socket | None = None) -> None:
        """`listener` may belong to another network than the server at `port` of this one."""
        self.target = port
        self.faults: list[tuple[str, str]] = []
        self.seen: list[str] = []
        self.let_go = threading.Event()
        self.lock = threading.Lock()
        self.listener = listener or socket.create_server(("127.0.0.1", 0))
        host, own = self.listener.getsockname()
        self.address = f"http://{host}:{own}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self.let_go.set()
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        place = ("127.0.0.1", self.target)
        with contextlib.suppress(OSError), client, socket.create_connection(place) as server:
            threading.Thread(target=self._back, args=(client, server), daemon=True).start()
            with contextlib.suppress(OSError):
                self._forward(client, server)
            server.shutdown(socket.SHUT_RDWR)  # closing alone says nothing while _back reads

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        while data := client.recv(1 << 16):
            fault = self._fault(data)
            if fault == "503":
                client.sendall(UNAVAILABLE)
                return
            if fault == "hold":
                self.let_go.wait()
                return
            if fault == "drop":
                server.sendall(data[: len(data) // 2])
                return
            server.sendall(data)

    def _back(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _fault(self, data: bytes) -> str:
        found = REQUEST.match(data)
        if found is None:
            return ""
        request = f"{found[1].decode()} {found[2].decode()}"
        with self.lock:
            self.seen.append(request)
            for number, (pattern, kind) in enumerate(self.faults):
                if re.search(pattern, request):
                    del self.faults[number]
                    return kind
        return ""


if __name__ == "__main__":
    {"s3": serve_s3, "gcs": serve_gcs}[sys.argv[1]](int(sys.argv[2]))
