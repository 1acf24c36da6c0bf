"""The page of an evaluated task: what it holds is what was found, and a browser shows and filters it."""

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from eval_files import picture
from PIL import Image

from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.engine import launch
from molmo_ds.eval import page
from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.clients.client import Ask, Reply
from molmo_ds.eval.provenance import Provenance
from molmo_ds.eval.run import Job, Outcome, evaluate

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars"
FLAGS += " --disable-background-networking --disable-component-update --disable-sync"
COUNT = 12
CLICKS = """<script>
const counts = {}, shown = () => document.querySelectorAll("article:not([hidden])").length;
for (const button of document.querySelectorAll("nav button")) { button.click(); counts[button.value] = shown(); }
document.querySelector("nav button").click();
const words = document.getElementById("text");
words.value = "CATS:007"; words.dispatchEvent(new Event("input")); counts.words = shown();
document.title = JSON.stringify(counts);
</script>"""
POINTS = BENCHMARKS["points"]


class Pointer:
    """Points to the middle of every picture, and once without an end."""

    def replies(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        for ask in asks:
            end = "length" if ask.id.endswith("003") else "stop"
            text = '<point x="50.0" y="50.0" alt="</script> cat">cat</point>'
            yield Reply(
                id=ask.id, text=text, token_count=9, end=end, prompt="Point to <b>the cat</b>."
            )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Outcome]:
    """Twelve pictures; every third has its cat in the middle, the others at the left."""
    folder = tmp_path_factory.mktemp("page")
    shards = []
    for number in range(COUNT):
        x = 50 if number % 3 == 0 else 10
        asked = {"style": "pointing", "label": "cat", "points": [[x, 50]], "point_scale": 100}
        asked["boxes"] = [[2 * x - 9, 30, 2 * x + 9, 70]]
        record = {"images": ["png"], "annotations": [asked]}
        shards.append(
            (
                f"{number:03d}",
                {"png": picture(15 * number, (200, 100)), "json": json.dumps(record).encode()},
            )
        )
    write_shards(iter(shards), folder / "data", samples_per_shard=20)
    values = dict.fromkeys(("checkpoint", "prompt", "precision", "data", "code"), "made up")
    values |= dict.fromkeys(("crops", "frames", "limit", "shuffle_seed"))
    provenance = Provenance(task="points", split="cats", new_tokens=192, **values)
    job = Job(
        task=POINTS,
        split="cats",
        shards=ShardSet(str(folder / "data")),
        results=folder / "results",
        provenance=provenance,
    )
    return job, evaluate(job, Pointer(), launch.alone())


def data_of(text: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    )


def test_the_page_needs_nothing_else_and_holds_what_was_found(made: tuple[Job, Outcome]) -> None:
    text = page.render(*made)
    assert re.findall(r"(?:src|href)=|url\(|@import", text) == []
    assert "<b>the cat" not in text and "</script> cat" not in text
    data = data_of(text)
    assert len(data["examples"]) == len(data["pictures"]) == COUNT
    first, second = data["examples"][:2]
    assert first["points"] == [[100.0, 50.0]] and first["true_points"] == [[100.0, 50.0]]
    assert first["boxes"] == [[91, 30, 109, 70]] and first["size"] == [200, 100]
    assert (first["verdict"], second["verdict"]) == ("right", "wrong")
    assert second["true_points"] == [[20.0, 50.0]] and second["reply"] == made[1].rows[1]["reply"]
    for address in data["pictures"].values():
        shown = Image.open(
            io.BytesIO(base64.b64decode(address.removeprefix("data:image/jpeg;base64,")))
        )
        assert shown.size == (200, 100)
    assert f"{100 * made[1].figures['metrics']['f1']['value']:.1f} %" in text


def test_at_most_as_many_as_asked_up_to_half_of_them_wrong(made: tuple[Job, Outcome]) -> None:
    data = data_of(page.render(*made, most=6))
    assert [one["verdict"] for one in data["examples"]].count("wrong") == 3
    assert len(data["examples"]) == 6 and len(data["pictures"]) == 6
    assert "6 of 12 questions are on this page" in page.render(*made, most=6)
    rows = made[1].rows
    assert page.choose(rows, 100, "f1") == set(range(COUNT))
    # only four are right: more wrong ones fill the page
    assert len(page.choose(rows, 10, "f1")) == 10
    assert page.choose(rows, 0, "f1") == set()


def test_another_run_is_shown_beside(made: tuple[Job, Outcome]) -> None:
    other = {
        made[1].rows[0]["id"]: {
            **made[1].rows[0],
            "reply": '<point x="5.0" y="20.0" alt="cat">cat</point>',
        }
    }
    data = data_of(page.render(*made, beside=other, name="before"))
    assert data["beside"] == "before" and data["examples"][0]["other"]["points"] == [[10.0, 20.0]]
    assert "other" not in data["examples"][1]


@pytest.mark.skipif(
    BROWSER is None, reason="no chromium here: the page of an evaluation is NOT opened"
)
def test_a_browser_shows_and_filters_the_page(made: tuple[Job, Outcome], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page.render(*made))
    command = [
        BROWSER,
        *FLAGS.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1240,1500",
    ]
    clicks = tmp_path / "clicks.html"
    clicks.write_text(file.read_text() + CLICKS)
    done = subprocess.run(
        [*command, "--dump-dom", clicks.as_uri()],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    counts = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert counts == {"all": COUNT, "wrong": 8, "truncated": 1, "words": 1}
    assert f"1 of the {COUNT} on this page" in done.stdout
    assert done.stdout.count("<circle") == 2 * COUNT and done.stdout.count("<rect") == COUNT
    shot = tmp_path / "page.png"
    subprocess.run(
        [*command, f"--screenshot={shot}", file.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    blue = (np.abs(pixels - (43, 107, 255)).max(axis=2) < 12).sum()  # predicted points
    green = (np.abs(pixels - (24, 165, 88)).max(axis=2) < 12).sum()  # boxes and true points
    ink = (pixels.max(axis=2) < 90).mean()
    assert blue > 100 and green > 300 and ink > 0.002, (blue, green, ink)
