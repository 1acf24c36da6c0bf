"""A headless Chromium that is told what to do over its DevTools protocol: open, click, drop, look."""

import asyncio
import base64
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars"
FLAGS += " --disable-background-networking --disable-component-update --disable-sync --remote-debugging-port=0"
START_SECONDS = 60


class Tab:
    """One page of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket = socket
        self.number = 0
        self.requested: list[str] = []  # addresses that the page loaded

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result; RuntimeError where the browser refuses it."""
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": parameters})
        while True:
            told = json.loads((await self.socket.receive(60)).data)
            if told.get("method") == "Network.requestWillBeSent":
                self.requested.append(told["params"]["request"]["url"])
            if told.get("id") == self.number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return told["result"]

    async def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        await self.call("Network.enable")
        await self.call("Page.enable")
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives."""
        told = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, expression: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(seconds):
            while not await self.value(expression):
                await asyncio.sleep(0.02)

    async def middle(self, selector: str) -> tuple[float, float]:
        """Where an element's middle is."""
        box = f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])(document.querySelector({selector!r})"
        x, y = await self.value(f"{box}.getBoundingClientRect())")
        return x, y

    async def click(self, selector: str) -> None:
        """Press and release the mouse on an element."""
        x, y = await self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def write(self, text: str) -> None:
        """Type a text."""
        await self.call("Input.insertText", text=text)

    async def drop(self, file: Path, selector: str) -> None:
        """Drag a file onto an element and let it go."""
        x, y = await self.middle(selector)
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    async def screenshot(self, file: Path) -> None:
        """Write what is shown as PNG."""
        shot = await self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def tab(folder: Path, size: str = "1280,800") -> AsyncIterator[Tab]:
    """A tab of a fresh browser whose profile lies in `folder`."""
    profile = folder / "profile"
    command = [
        BROWSER,
        *FLAGS.split(),
        f"--user-data-dir={profile}",
        f"--window-size={size}",
        "about:blank",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = await _port(profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as response:
                pages = [page for page in await response.json() if page["type"] == "page"]
            async with session.ws_connect(
                pages[0]["webSocketDebuggerUrl"], max_msg_size=1 << 28
            ) as socket:
                yield Tab(socket)
    finally:
        process.terminate()
        process.wait(30)


async def _port(file: Path) -> int:
    async with asyncio.timeout(START_SECONDS):
        while not file.is_file() or not file.read_text():
            await asyncio.sleep(0.05)
    return int(file.read_text().split()[0])
