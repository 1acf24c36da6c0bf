"""A loopback web server of one folder, with range requests and faults on demand."""

import http.server
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ShardServer(http.server.ThreadingHTTPServer):
    """`faults` (drop, stall, 429, 503, whole ...) are taken one per GET whose path ends with `.tar`."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.faults, self.log = folder, [], []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ShardServer

    def do_HEAD(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self._empty(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self._empty(404)
            return
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        fault = self.server.faults.pop(0) if self.server.faults and path.suffix == ".tar" else ""
        self.server.log.append(
            (self.path, asked and (int(asked[1]), int(asked[2]) + 1), fault, time.monotonic())
        )
        if fault in ("404", "429", "503"):
            self._empty(int(fault), {"Retry-After": "1"} if fault == "429" else {})
            return
        data = path.read_bytes()
        if asked and fault != "whole":
            data = data[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206 if asked and fault != "whole" else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "stall":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            time.sleep(2.5)
            self.close_connection = True
        elif fault == "drop":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data)

    def _empty(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def serve(folder: Path) -> Iterator[ShardServer]:
    server = ShardServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
