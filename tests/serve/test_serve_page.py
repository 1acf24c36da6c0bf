"""The page at / in a headless Chromium: a picture is dropped, a question asked, words stream, points are drawn."""

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from molmo_ds.data.sample import point_text
from molmo_ds.testing.browser import BROWSER, tab
from molmo_ds.testing.parrot import Parrot
from molmo_ds.testing.serving import Server, get
from molmo_ds.testing.small_videos import film

QUESTION = (
    'Two: <points x1="25.0" y1="75.0" x2="75.0" y2="25.0" alt="birds">birds</points> are there.'
)


def test_the_page_needs_nothing_else(server: Server) -> None:
    status, page = get(f"{server.url}/")
    assert status == 200
    for name in ("page.js", "page.css"):
        assert name in page.decode() and get(f"{server.url}/{name}")[0] == 200
        assert (
            b"http" not in get(f"{server.url}/{name}")[1].replace(b"https", b"http")
            and b"http" not in page
        )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A sky with two birds."""
    image = Image.new("RGB", (640, 480), (150, 190, 225))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 400, 640, 480), fill=(90, 130, 70))
    for x, y in ((160, 360), (480, 120)):
        pen.arc((x - 50, y - 20, x, y + 20), 200, 340, fill=(30, 30, 40), width=6)
        pen.arc((x, y - 20, x + 50, y + 20), 200, 340, fill=(30, 30, 40), width=6)
    image.save(tmp_path / "birds.png")
    return tmp_path / "birds.png"


@pytest.mark.skipif(
    BROWSER is None, reason="no chromium here: the page of the server is NOT checked"
)
def test_drop_ask_and_points(server: Server, parrot: Parrot, picture: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"

    async def use() -> None:
        async with tab(tmp_path) as page:
            await page.open(server.url)
            await page.until("document.querySelector('#state').className === 'ready'")
            await page.drop(picture, "#stage")
            await page.until("document.querySelector('#picture').naturalWidth === 640")
            await page.click("#question")
            await page.write(QUESTION)
            await page.click("#ask")
            await page.until("document.querySelectorAll('.point').length === 2")
            await page.until("document.querySelector('#ask').textContent === 'Ask'")
            said = await page.value("document.querySelector('.assistant').dataset.text")
            assert said == f"User: {QUESTION} Assistant:"
            assert (
                await page.value("document.querySelector('.assistant mark').textContent") == "birds"
            )
            assert (
                await page.value("document.querySelector('.assistant').textContent.includes('<')")
                is False
            )
            place = "(({left, top}) => [left, top])(document.querySelectorAll('.point')[1].style)"
            assert await page.value(place) == ["75%", "25%"]
            await page.until(
                "[...document.querySelectorAll('.point')].every((mark) => !mark.getAnimations().length)"
            )
            await page.screenshot(shot)
            await page.click("#question")
            await page.write("And now?")
            await page.click("#ask")
            await page.until("document.querySelectorAll('.assistant:not(.busy)').length === 2")
            await page.click("#clear")
            assert await page.value("document.querySelectorAll('.turn, .point').length") == 0
            assert all(url.startswith((server.url, "data:")) for url in page.requested)

    asyncio.run(use())
    first, second = parrot.asked[-2:]
    assert len(first.prompt.images) > 1
    turns = int((second.prompt.branch_ids > 0).sum())
    assert len(second.prompt.images) == len(first.prompt.images) and turns > int(
        (first.prompt.branch_ids > 0).sum()
    )
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    pink = np.abs(pixels - (255, 45, 120)).max(axis=2) < 12
    rows, columns = pink.nonzero()
    # two marks, apart as they should be
    assert pink.sum() > 300 and np.ptp(rows) > 100 and np.ptp(columns) > 200


@pytest.mark.skipif(
    BROWSER is None, reason="no chromium here: the page of the server is NOT checked"
)
def test_a_video_and_its_track(server: Server, parrot: Parrot, tmp_path: Path) -> None:
    """The points of the moment that the video has reached."""
    video = tmp_path / "a.mp4"
    video.write_bytes(film(range(0, 2000, 100), codec="libx264"))
    question = '<tracks coords="0.0 1 100 500;1.0 1 900 500 2 250 500">bird</tracks>'

    async def use() -> None:
        async with tab(tmp_path) as page:
            await page.open(server.url)
            await page.until("document.querySelector('#state').className === 'ready'")
            await page.drop(video, "#stage")
            await page.until("document.querySelector('#video').videoWidth === 48")
            await page.click("#question")
            await page.write(question)
            await page.click("#ask")
            await page.until("document.querySelectorAll('.assistant:not(.busy)').length === 1")
            left = "[...document.querySelectorAll('.point')].map((mark) => mark.style.left).join()"
            assert await page.value(left) == "10%"
            assert (
                await page.value("document.querySelector('.assistant mark').textContent") == "bird"
            )
            await page.value("document.querySelector('#video').currentTime = 1.4")
            await page.until(f"{left} === '90%,25%'")

    asyncio.run(use())
    assert len(parrot.asked[-1].prompt.images) == 8  # Molmo's max_frames


def test_the_page_knows_every_tag_that_the_scores_know() -> None:
    """The patterns of page.js are those of eval/pointing.py and of point_text.py, which are the references'."""
    script = (Path(__file__).parents[2] / "molmo_ds/serve/page.js").read_text()
    patterns = {
        name: text.replace("\\/", "/")
        for name, text in re.findall(r"const ([A-Z]+) = /(.*)/g;", script)
    }
    for name in ("COORDS", "GROUP", "POINT"):
        assert patterns[name] == getattr(point_text, f"_{name}").pattern
    pattern = patterns["PAIR"]
    text = '<point x="1.5" y="2" alt="a">a</point> <points x1="3.0" y1="4.0" x2=" 5.0" y2="6.0" alt="b">b</points>'
    assert re.findall(pattern, text) == [("1.5", "2"), ("3.0", "4.0"), ("5.0", "6.0")]
