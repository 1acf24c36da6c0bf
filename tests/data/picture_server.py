"""A web server on this machine that misbehaves in each way pictures on the web do."""

import asyncio
import io
import threading
import time
from collections import Counter
from email.utils import formatdate

import numpy as np
from aiohttp import web
from PIL import Image


def picture(seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


class Server:
    """Answers /CASE and /CASE/NUMBER; counts what was asked."""

    def __init__(self) -> None:
        self.hits, self.times, self.under_way, self.peak = Counter(), [], 0, 0
        self.ready, self.loop = threading.Event(), asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        assert self.ready.wait(10)

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        app = web.Application()
        app.router.add_get("/{case}", self.answer)
        app.router.add_get("/{case}/{number}", self.answer)
        self.runner = web.AppRunner(app)
        self.loop.run_until_complete(self.runner.setup())
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        self.loop.run_until_complete(site.start())
        self.port = site._server.sockets[0].getsockname()[1]
        self.loop.call_soon(self.ready.set)
        self.loop.run_forever()
        self.loop.run_until_complete(self.runner.cleanup())

    def url(self, case: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{case}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        case = request.match_info["case"]
        number = int(request.match_info.get("number", 0))
        self.hits[request.path] += 1
        self.times.append((request.path, time.monotonic()))
        self.under_way += 1
        self.peak = max(self.peak, self.under_way)
        try:
            return await getattr(self, f"on_{case}")(request, number, self.hits[request.path])
        finally:
            self.under_way -= 1

    async def on_good(self, request, number, hit):
        return web.Response(body=picture(number))

    async def on_lingering(self, request, number, hit):
        await asyncio.sleep(0.05)
        return web.Response(body=picture(number))

    async def on_signed(self, request, number, hit):
        right = request.raw_path == "/signed/5?key=a%2Fb%2Bc%3D"
        return web.Response(body=picture(number)) if right else web.Response(status=403)

    async def on_missing(self, request, number, hit):
        return web.Response(status=404, body=picture())  # some hosts send a picture with their 404

    async def on_gone(self, request, number, hit):
        return web.Response(status=410)

    async def on_forbidden(self, request, number, hit):
        return web.Response(status=403)

    async def on_busy_then_good(self, request, number, hit):
        return (
            web.Response(body=picture(3)) if hit > 1 else web.Response(status=503, text="try later")
        )

    async def on_busy(self, request, number, hit):
        return web.Response(status=503, text="try later")

    async def on_too_many(self, request, number, hit):
        return (
            web.Response(body=picture(4))
            if hit > 1
            else web.Response(status=429, headers={"Retry-After": "1"})
        )

    async def on_come_tomorrow(self, request, number, hit):
        return web.Response(
            status=429, headers={"Retry-After": formatdate(time.time() + 86400, usegmt=True)}
        )

    async def on_slow(self, request, number, hit):
        await asyncio.sleep(3.0)
        return web.Response(body=picture())

    async def on_short(self, request, number, hit):
        body = picture()
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        request.transport.close()
        return response

    async def on_short_no_length(self, request, number, hit):
        request.transport.write(
            b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + picture()[:-400]
        )
        request.transport.close()
        return web.Response()

    async def on_html(self, request, number, hit):
        return web.Response(
            text="<!DOCTYPE html><p>This picture moved.", headers={"Content-Type": "image/jpeg"}
        )

    async def on_text(self, request, number, hit):
        return web.Response(text="quota exceeded")

    async def on_empty(self, request, number, hit):
        return web.Response(body=b"")

    async def on_redirect(self, request, number, hit):
        raise web.HTTPFound("/good/7")

    async def on_circle(self, request, number, hit):
        raise web.HTTPFound("/circle")

    async def on_robots(self, request, number, hit):
        return web.Response(body=picture(), headers={"X-Robots-Tag": "noai, noimageai"})

    async def on_robots_other(self, request, number, hit):
        return web.Response(body=picture(8), headers={"X-Robots-Tag": "otherbot: noai"})

    async def on_large(self, request, number, hit):
        return web.Response(body=bytes(300_000))

    async def on_large_hidden(self, request, number, hit):
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for _ in range(30):
            await response.write(bytes(10_000))
        return response

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
