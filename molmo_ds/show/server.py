"""The page over HTTP, rendered at every load, on this machine only unless told otherwise."""

import ipaddress
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def server(host: str, port: int, render: Callable[[], str]) -> ThreadingHTTPServer:
    """A server of one page, not started; ValueError where the port is taken.

    On loopback it answers only who asks for it by a name of this machine, so that no page of the web, whose name is
    made to point here, can read it.
    """
    own = is_loopback(host)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if own and not is_loopback(asked):
                self.send_error(403)
            elif self.path.partition("?")[0] != "/":
                self.send_error(404)
            else:
                self.answer(render().encode(errors="replace"))

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header(
                "Content-Security-Policy",
                "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
            )
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing of each load."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ValueError(
            f"{host}:{port} cannot be served ({error}); give another --port."
        ) from None
