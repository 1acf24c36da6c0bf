"""A stand-in for an OpenAI-compatible server on loopback, which misbehaves as it is told."""

import base64
import contextlib
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Answer = tuple[int, Any]  # status, JSON or bytes of the body


class ChatServer:
    """Answers each question with `answer(text, how often it was asked)`; remembers the bodies and how many at once."""

    def __init__(self, answer: Callable[[str, int], Answer]):
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: Counter = Counter()
        self.running = 0
        self.most = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send(200, {"data": [{"id": "made-up"}]})

            def do_POST(self) -> None:
                with outer.lock:
                    outer.running += 1
                    outer.most = max(outer.most, outer.running)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][0]["content"][-1]["text"]
                with outer.lock:
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.times[text] += 1
                status, value = answer(text, outer.times[text])
                time.sleep(0.02)
                with outer.lock:
                    outer.running -= 1
                with contextlib.suppress(BrokenPipeError):  # the client may be tired of waiting
                    self.send(status, value)

            def send(self, status: int, value: Any) -> None:
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


def said(text: str | None, end: str = "stop") -> Answer:
    """A good answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": end}
    return 200, {"choices": [choice], "usage": {"completion_tokens": 2}}


def size_of(body: dict[str, Any]) -> tuple[int, int]:
    """Width and height of the first picture of a request."""
    address = body["messages"][0]["content"][0]["image_url"]["url"]
    kind, data = address.split(";base64,")
    assert kind == "data:image/png"
    return Image.open(io.BytesIO(base64.b64decode(data))).size
