"""molmo-ds show: the page says what a run's folder holds, whatever state that is in, and a browser shows it."""

import asyncio
import contextlib
import json
import os
import re
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest
from PIL import Image

from molmo_ds import settings
from molmo_ds.cli import show
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards
from molmo_ds.engine import launch
from molmo_ds.eval import page as evaluation_page
from molmo_ds.eval import results
from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.clients.client import Ask, Reply
from molmo_ds.eval.provenance import Provenance
from molmo_ds.eval.run import Job, evaluate
from molmo_ds.show import curves, folder, history, page, server
from molmo_ds.stores import events
from molmo_ds.testing import run_files
from molmo_ds.testing.browser import BROWSER, tab
from molmo_ds.weights.checksums import facts_of

EVIL = "</script><script>window.evil=1</script>"
WISH = page.Wish(samples=3, examples=4)


class Pointer:
    """Points to the middle of every picture."""

    def replies(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        for ask in asks:
            text = f'<point x="50.0" y="50.0" alt="cat">{EVIL}</point>'
            yield Reply(id=ask.id, text=text, token_count=9, end="stop", prompt="Point to the cat.")


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1][0] not in ("script", "style"):
            self.words.append(data)

    def count(self, tag: str, kind: str | None = None) -> int:
        return sum(name == tag and kind in (None, its.get("class")) for name, its in self.tags)


def cats(count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Pictures with a cat, every second of them in the middle."""
    grey = dict(run_files.records(2))["000001"]["png"]
    for number in range(count):
        x = 50 if number % 2 else 10
        asked = {"style": "pointing", "label": "cat", "points": [[x, 50]], "point_scale": 100}
        asked["boxes"] = [[max(0, x - 6), 5, x - 1, 25] if x == 10 else [15, 10, 25, 20]]
        record = {"images": ["png"], "annotations": [asked]}
        yield f"{number:03d}", {"png": grey, "json": json.dumps(record).encode()}


def line(step: int, **more: float | None) -> str:
    values = {"step": step, "time": 1.7e9 + 2 * step, "loss": 8 / step, "grad_norm/text": 1.5}
    values |= {"lr/text": 1e-4 * step, "tokens_per_second": 100.0, "step_seconds": 2.0, **more}
    return json.dumps(values) + "\n"


def save(run: Path, step: int) -> Path:
    """A checkpoint as its manifest describes it."""
    made = run / "checkpoints" / f"step-{step:08d}"
    made.mkdir(parents=True)
    for name in ("config.yaml", "rank-00000.json", "rank-00000.safetensors"):
        (made / name).write_bytes(b"x" * 500_000)
    noted = {file.name: facts_of(file) for file in made.iterdir()}
    manifest = {"format": 1, "step": step, "ranks": 1, "optimizer": "adamw", "files": noted}
    (made / "manifest.json").write_text(json.dumps(manifest))
    (run / "checkpoints/latest").write_text(made.name)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed at step 30, with held-out losses, an evaluation and a half saved checkpoint."""
    root = tmp_path_factory.mktemp("show")
    run = root / f"run {EVIL.replace('/', '')}"
    run.mkdir()
    overrides = [*run_files.make(root), f"out={run}", "max_steps=40"]
    write_shards(cats(8), root / "cats", samples_per_shard=8)
    overrides += [f"data.sources.{name}.path={root / 'cats'}" for name in ("cats",)]
    overrides += ["data.sources.grey=null", "global_batch=2", "data.sequence_length=512"]
    settings.save(settings.load(overrides=overrides), run / "config.yaml")
    told = [line(step) for step in range(1, 31)]
    told[19] = line(20, **{"eval/aside/loss": 0.75, "eval/aside/seconds": 3.0, EVIL: 1.0})
    told[24] = line(25, loss=None)
    (run / "log.jsonl").write_text("".join(told))
    events.note(run, "start", step=0, ranks=2)
    events.note(run, "fault", reason=f"Step 12 is not finite {EVIL}", step=12)
    events.note(run, "start", step=10, ranks=2)
    (run / "launch").mkdir()
    events.note(run / "launch", "fault", reason="host2 does not answer", step=10)
    save(run, 10)
    whole = save(run, 20)
    (whole / "rank-00000.json").write_bytes(b"x" * 499_999)
    (run / "checkpoints/step-00000030").mkdir()
    values = dict.fromkeys(("checkpoint", "prompt", "precision", "data", "code"), "made up")
    values |= dict.fromkeys(("crops", "frames", "limit", "shuffle_seed"))
    task = BENCHMARKS["points"]
    job = Job(
        task=task,
        split="cats",
        shards=ShardSet(str(root / "cats")),
        results=run / "predictions-ck20-points-cats",
        provenance=Provenance(task="points", split="cats", new_tokens=192, **values),
    )
    outcome = evaluate(job, Pointer(), launch.alone())
    evaluation_page.write(job, outcome)
    results.write(job, outcome, {}, {})
    long_ago = 1.7e9
    for name in ("log.jsonl",):
        os.utime(run / name, (long_ago, long_ago))
    return run


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return page.render(run, WISH)


def data_of(text: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    )


def test_the_page_needs_nothing_else_and_runs_no_script_of_a_name(text: str) -> None:
    elements = Elements(text)
    assert elements.count("script") == 2
    addresses = [its[name] for _, its in elements.tags for name in ("src", "href") if its.get(name)]
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    assert EVIL in "".join(elements.words)  # as letters


def test_curves_hold_every_step_held_out_losses_and_marks(text: str) -> None:
    data = data_of(text)
    charts = {chart["title"]: chart["curves"] for chart in data["charts"]}
    loss, held_out = charts["loss"]
    assert loss["steps"] == list(range(1, 31)) and loss["values"][3] == 2.0
    assert loss["values"][24] is None  # was not finite
    assert held_out == {"name": "eval/aside/loss", "steps": [20], "values": [0.75]}
    assert [one["name"] for one in charts["learning rate"]] == ["lr/text"]
    assert {"eval/aside/seconds", EVIL} < set(charts)
    assert data["marks"] == [
        {"step": 12, "what": "fault"},
        {"step": 10, "what": "start"},
        {"step": 10, "what": "fault"},
    ]


def test_tables_say_what_lies_in_the_folder(text: str) -> None:
    words = "|".join(Elements(text).words)
    assert "30 / 40|steps" in words and "1|restarts" in words and "2|faults" in words
    assert "step-00000010|1.5 MB|1|" in words
    assert "not whole: rank-00000.json has 499999 bytes instead of 500000" in words
    assert "step-00000030|not whole: manifest.json is missing" in words.replace("|||", "|")
    assert "launch|fault|reason host2 does not answer, step 10" in words
    assert "silent|" in words and "killed, or it hangs" in words
    assert "predictions-ck20-points-cats|f1 (headline)|0.5000" in words


def test_answers_and_samples_have_their_points(text: str, run: Path) -> None:
    elements = Elements(text)
    circles = [its for tag, its in elements.tags if tag == "circle"]
    predicted = [its for its in circles if its["class"] == "predicted"]
    assert [(its["cx"], its["cy"]) for its in predicted] == [("20", "15")] * WISH.examples
    true = [(its["cx"], its["cy"]) for its in circles if its["class"] == "true"]
    assert sorted(set(true)) == [("20", "15"), ("4", "15")]
    assert len(true) == WISH.examples + WISH.samples
    assert [elements.count("article", kind) for kind in ("right", "wrong")] == [2, 2]
    learnt = [word for word in elements.words if word.startswith("<point x=")]
    assert len(learnt) == WISH.examples + WISH.samples + WISH.examples  # reply, truth
    assert Elements(page.render(run, page.Wish(0, 0))).count("circle") == 0


def test_what_is_damaged_costs_its_own_section(run: Path, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        line(1)
        + '[1]\n"x"\n{"step": 2\n'
        + "[" * 100_000
        + '\n{"step": NaN, "loss": 3}\n{"step": 3, "loss": Infinity, "grad_norm": "high", "mfu": true}\n'
        + f'{{"step": 4, "loss": {"9" * 400}}}\n{{"loss": 1}}\n\x00\xff\n'
    )
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n{"time": 1e300, "event": [1]}\n{')
    (tmp_path / "config.yaml").write_text("max_steps: [")
    damaged = {"metrics.json": '{"figures": {"headline": 3}}', "log/rank-0.jsonl": '{"id": "a"}\n'}
    for name, content in damaged.items():
        (tmp_path / "predictions-points" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "predictions-points" / name).write_text(content)
    (tmp_path / "checkpoints/step-00000001").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000001/manifest.json").write_text("{}")
    (tmp_path / "checkpoints/latest").write_bytes(b"\xff\xfe")
    made = page.render(tmp_path, WISH)
    words = "|".join(Elements(made).words)
    assert "5 lines of log.jsonl cannot be read" in words
    assert "2 lines cannot be read" in words and "no time|train|[1]" in words
    assert "is not as molmo-ds evaluate writes it (figures.headline:" in words
    assert "not whole: manifest.json cannot be read" in words
    assert words.count("config.yaml") >= 2 and "Samples" in words
    [loss] = [chart for chart in data_of(made)["charts"] if chart["title"] == "loss"]
    assert loss["curves"] == [{"name": "loss", "steps": [1, 3, 4], "values": [8.0, None, None]}]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "holds no files of a run"),
        (["first/log.jsonl", "second/config.yaml"], "name one of them: first, second"),
        ([".nv-meta/index"], "molmo-ds shards show"),
    ],
)
def test_a_folder_that_is_no_run(names: list[str], said: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=said):
        folder.open_run(str(tmp_path))
    with pytest.raises(ValueError, match="no files of a run"):
        folder.open_run(str(tmp_path / "nowhere"))


def test_states_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()

    def state() -> str:
        run = folder.open_run(str(tmp_path))
        found, _ = history.history(run, [])
        return history.state(run, found, [])[0]

    assert state() == "new" and "No step yet" not in page.render(tmp_path, WISH)
    events.note(tmp_path, "start", step=0)
    (tmp_path / "heartbeat").touch()
    assert state() == "running"
    os.utime(tmp_path / "heartbeat", (1.7e9 - 1e6, 1.7e9 - 1e6))
    assert state() == "silent"
    events.note(tmp_path, "end", step=3, reason="signal 15")
    assert state() == "stopped"
    events.note(tmp_path, "start", step=3)
    assert state() == "silent"
    (tmp_path / "DONE").touch()
    assert state() == "done"


def test_a_pause_of_the_log_is_noted_and_an_even_log_has_none() -> None:
    lines = [{"step": step, "time": 2.0 * step, "loss": 1.0} for step in range(1, 21)]
    assert history.pauses(lines) == []
    late = [line | {"time": line["time"] + (100 if line["step"] > 12 else 0)} for line in lines]
    [pause] = history.pauses(late)
    assert pause.facts == {"step": 12, "seconds": 102} and pause.time == 126


def test_a_long_curve_keeps_its_peaks() -> None:
    points = [(float(step), float(step % 7)) for step in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    points[77_777] = (77_777.0, None)
    kept = curves.thinned(points)
    assert len(kept) <= curves.MOST and kept == sorted(kept, key=lambda point: point[0])
    assert (54_321.0, 99.0) in kept and (77_777.0, None) in kept
    assert curves.thinned(points[: curves.MOST]) == points[: curves.MOST]


def test_the_command_writes_the_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "page.html"
    show.main([str(run), "--out", str(out), "--samples", "0", "--verify"])
    assert str(run) in capsys.readouterr().out
    assert "the checksum of" not in out.read_text() and "step-00000010" in out.read_text()
    data = run / "checkpoints/step-00000010/config.yaml"
    data.write_bytes(b"y" * data.stat().st_size)
    show.main([str(run), "--out", str(out), "--samples", "0", "--verify"])
    assert "not whole: the checksum of config.yaml is wrong" in out.read_text()


@contextlib.contextmanager
def served(run: Path) -> Iterator[str]:
    made = server.server("127.0.0.1", 0, lambda: page.render(run, page.Wish(0, 4)))
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def test_the_server_answers_this_machine_only_and_renders_at_every_load(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with served(tmp_path) as url:
        assert b"no step yet" in urllib.request.urlopen(f"{url}/").read()
        (tmp_path / "log.jsonl").write_text(line(7))
        assert b"running" in urllib.request.urlopen(f"{url}/?again").read()
        with pytest.raises(HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/config.yaml")
        with pytest.raises(HTTPError, match="403"):
            asked = urllib.request.Request(url, headers={"Host": "evil.example:80"})
            urllib.request.urlopen(asked)
        port = int(url.rpartition(":")[2])
        with pytest.raises(ValueError, match="another --port"):
            server.server("127.0.0.1", port, str)


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: the page of a run is NOT opened")
def test_a_browser_draws_reads_and_zooms(run: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    drawn = "document.querySelector('.chart path.curve').getAttribute('d')"

    async def use(url: str) -> None:
        async with tab(tmp_path) as browser:
            await browser.open(url)
            count = await browser.value("document.querySelectorAll('.chart').length")
            assert count == len(data_of(page.render(run, page.Wish(0, 0)))["charts"])
            assert await browser.value("window.evil === undefined")
            whole = await browser.value(drawn)
            assert whole.count("M") == 2 and whole.count("L") == 27  # 29 points, a gap among them
            await browser.screenshot(shot)
            x, y = await browser.middle(".chart svg")
            mouse = {"button": "left", "clickCount": 1}
            await browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
            label = await browser.value("document.querySelector('.chart li').textContent")
            step = int((await browser.value("document.getElementById('range').textContent"))[5:])
            assert 12 < step < 19 and label == f"loss {8 / step:.4g}"
            for kind, at in (
                ("mousePressed", x),
                ("mouseMoved", x + 50),
                ("mouseReleased", x + 50),
            ):
                more = {} if kind == "mouseMoved" else mouse
                await browser.call("Input.dispatchMouseEvent", type=kind, x=at, y=y, **more)
            near = await browser.value(drawn)
            assert 2 <= near.count("L") < 10
            await browser.call("Page.reload")
            await browser.until(f"document.readyState === 'complete' && {drawn} === {near!r}")
            await browser.click("#whole")
            assert await browser.value(drawn) == whole
            await browser.click("#logarithmic")
            assert await browser.value(drawn) != whole
            assert {address for address in browser.requested if address.startswith("http")} == {url}

    with served(run) as url:
        asyncio.run(use(f"{url}/"))
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.std() > 10 and (pixels == (0x2B, 0x6C, 0xFF)).all(-1).sum() > 50  # a curve's
