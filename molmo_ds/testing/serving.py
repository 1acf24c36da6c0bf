"""A front in a thread of this process, an engine behind it, and requests to both: for the tests of serve."""

import asyncio
import base64
import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from molmo_ds import settings
from molmo_ds.data.tokens import train_tokenizer
from molmo_ds.engine.launching.ports import free_port
from molmo_ds.hub.load import write_weights
from molmo_ds.model.molmo import Molmo
from molmo_ds.serve.address import read_address
from molmo_ds.serve.front import Front
from molmo_ds.serve.link import Dialled
from molmo_ds.serve.settings import FrontSettings
from molmo_ds.serve.worker import Answering, Ranks, Worker
from molmo_ds.testing import run_files

CROPS = ["model.images.crop_mode=overlap-and-resize-c2", "model.images.max_crops=4"]
# Molmo2 has 14 special tokens, and takes features of its third last block
FITS = ["model.text.additional_vocab_size=16", "model.vision.feature_layers=[-1,-2]"]
SECRET = "told to both"
TEXT = 'How many birds are there? <point x="25.0" y="75.0" alt="bird">bird</point> Counting shows a total of 3. naïve é'


def weights_folder(folder: Path, positions: int = 512, preset: str = "tiny") -> Path:
    """A folder of weights of a micro model, with a tokenizer of bytes and a few words."""
    config = settings.load(None, [f"preset={preset}", *run_files.MODEL, *CROPS, *FITS]).model
    config = replace(config, text=replace(config.text, max_position_embeddings=positions))
    train_tokenizer([TEXT], 288, folder / "words")
    torch.manual_seed(0)
    model = Molmo(config)
    tensors = ((name, torch.randn(p.shape) * 0.1) for name, p in model.named_parameters())
    write_weights(
        folder / "weights", config, tensors, folder / "words", len(list(model.parameters()))
    )
    return folder / "weights"


class Server:
    """A front that listens, at `url`."""

    def __init__(self, folder: Path, **changes: Any):
        self.settings = FrontSettings(
            folder=str(folder),
            address=f"127.0.0.1:{free_port()}",
            link=f"127.0.0.1:{free_port()}",
            secret=SECRET,
            **changes,
        )
        self.url = f"http://{self.settings.address}"
        self.front: Front | None = None

    def dialled(self, patience: float = 5.0) -> Dialled:
        """Rank 0's end of the link."""
        return Dialled(read_address(self.settings.link), SECRET, patience)

    @contextmanager
    def front_in_a_thread(self) -> Iterator[None]:
        """Serve until the block is left."""
        loop = asyncio.new_event_loop()
        listens = threading.Event()
        over = asyncio.Event()

        async def serve() -> None:
            self.front = Front(self.settings)
            async with self.front.listening():
                listens.set()
                await over.wait()

        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
        thread.start()
        assert listens.wait(30)
        yield
        loop.call_soon_threadsafe(over.set)
        thread.join(30)
        loop.close()

    @contextmanager
    def engine_in_a_thread(self, replica: Answering) -> Iterator[None]:
        """An engine that answers until the block is left."""
        worker = Worker(replica, Ranks(), self.dialled())
        over = threading.Event()

        def tick() -> None:
            while not over.is_set():
                worker.tick()
            worker.front.close()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        self.wait_for_engine()
        yield
        over.set()
        thread.join(30)

    def wait_for_engine(self, there: bool = True) -> None:
        """Until /health says so."""
        for _ in range(1500):
            if (get(f"{self.url}/health")[0] == 200) == there:
                return
            threading.Event().wait(0.02)
        raise AssertionError(f"/health did not become {200 if there else 503}")


def chat(text: str, *pictures: str, **keys: Any) -> dict[str, Any]:
    """The body of a request with one message."""
    parts = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    return {
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        **keys,
    }


def data_url(width: int = 40, height: int = 30, shade: int = 90) -> str:
    """A grey picture as a data: URL."""
    stream = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), shade, np.uint8)).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def get(url: str, **headers: str) -> tuple[int, bytes]:
    """(status, body)."""
    return _open(urllib.request.Request(url, headers=headers))


def post(url: str, body: dict[str, Any] | bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    """(status, JSON) of a question."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    status, answer = _open(urllib.request.Request(f"{url}/v1/chat/completions", data, headers))
    return status, json.loads(answer)


def events(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a streamed answer, without the [DONE] that must be the last."""
    data = json.dumps({**body, "stream": True}).encode()
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        *lines, last = [
            line[len(b"data: ") :].strip() for line in response if line.startswith(b"data: ")
        ]
    assert last == b"[DONE]"
    return [json.loads(line) for line in lines]


def _open(request: urllib.request.Request) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
