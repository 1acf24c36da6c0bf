"""The examples: the digits' split and their records, and the quickstart itself, a few steps long on two ranks."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from molmo_ds import settings
from molmo_ds.data.decode import load_image
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.engine.launch import World
from molmo_ds.eval.benchmarks import by_style
from molmo_ds.eval.row import Row, true_answer
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.testing.scripts import load

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples/digits"
STAGES = {"captions": "train", "questions": "train", "examination": "heldout"}
SETTINGS = ("EASY", "HARD")


@pytest.fixture(scope="module")
def compose() -> ModuleType:
    return load("examples/digits", "compose")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a quickstart of 16 steps and what it printed."""
    out = tmp_path_factory.mktemp("quickstart") / "run"
    command = [
        sys.executable,
        str(DIGITS / "quickstart.py"),
        "--out",
        str(out),
        "--steps",
        "16",
        "--ranks",
        "2",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        said, errors = process.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # it then ends the ranks that it has started
        process.communicate(timeout=60)
        raise
    consoles = "\n".join(p.read_text(errors="replace")[-3000:] for p in out.glob("*/console.log"))
    assert process.returncode == 0, errors[-3000:] + consoles
    return out, said


def test_no_scan_and_no_photograph_is_in_both_splits(compose):
    train, held_out = (set(compose.load_scans(split)[0].tolist()) for split in ("train", "heldout"))
    assert not train & held_out
    assert train | held_out == set(range(1797))
    assert not set(compose.PHOTOGRAPHS["train"]) & set(compose.PHOTOGRAPHS["heldout"])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("stage", STAGES)
def test_pictures_show_scans_of_their_split_only(compose, stage: str, setting: str):
    allowed = set(compose.load_scans(STAGES[stage])[0].tolist())
    shown = set()
    for _, parts in compose.records(STAGES[stage], stage, 300, getattr(compose, setting)):
        shown |= {digit["scan"] for digit in json.loads(parts["json"])["metadata"]["digits"]}
    assert shown <= allowed
    assert len(shown) > 250


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_digits_said_are_those_drawn(compose, setting: str):
    ids, scans, labels = compose.load_scans("train")
    by_id = {int(i): (scan, int(label)) for i, scan, label in zip(ids, scans, labels)}
    setting = getattr(compose, setting)
    rows = round(len(setting.places) ** 0.5)
    for _, parts in compose.records("train", "questions", 50, setting):
        picture = load_image(parts["jpg"])[..., 0].astype(np.float64)
        for digit in json.loads(parts["json"])["metadata"]["digits"]:
            scan, label = by_id[digit["scan"]]
            left, top, right, bottom = digit["box"]
            assert label == digit["digit"]
            part = setting.side / rows
            assert digit["place"] % rows == (left + right) / 2 // part
            assert digit["place"] // rows == (top + bottom) / 2 // part
            across = np.linspace(0, 7, bottom - top).round().astype(int)
            ink = scan[across][:, np.linspace(0, 7, right - left).round().astype(int)]
            assert np.corrcoef(ink.ravel(), picture[top:bottom, left:right].ravel())[0, 1] > 0.6


def test_records_are_the_same_every_time_and_differ_between_stages(compose):
    first, again, other = (
        [parts["jpg"] for _, parts in compose.records("train", stage, 5)]
        for stage in ("captions", "captions", "questions")
    )
    assert first == again
    assert not set(first) & set(other)


@pytest.mark.parametrize("setting", SETTINGS)
def test_true_answers_of_the_examination_score_one(compose, setting: str):
    setting = getattr(compose, setting)
    size = (setting.side, setting.side)
    for _, parts in compose.records("heldout", "examination", 100, setting):
        for annotation in json.loads(parts["json"])["annotations"]:
            task = next(one for one in by_style.TASKS if annotation["style"] in one.styles)
            row = Row(id="one", index=0, picture="one", annotation=annotation, size=size)
            found = task.score(true_answer(row), row)
            assert found.pop("unreadable") == 0.0
            assert set(found.values()) == {1.0}


@pytest.mark.parametrize("setting, most", [("EASY", 3), ("HARD", 5)])
def test_counts_asked_are_balanced(compose, setting: str, most: int):
    counts = [
        len(annotation["points"])
        for _, parts in compose.records("heldout", "examination", 600, getattr(compose, setting))
        for annotation in json.loads(parts["json"])["annotations"]
        if annotation["style"] == "point_count"
    ]
    assert set(counts) == set(range(1, most + 1))
    assert max(np.bincount(counts)) / len(counts) < 1 / most + 0.07  # deviation 0.02


def test_hard_pictures_are_what_is_said_of_them(compose):
    hard = compose.HARD
    totals = set()
    sizes = set()
    kinds: set[str] = set()
    for _, parts in compose.records("train", "questions", 400, hard):
        record = json.loads(parts["json"])
        digits = record["metadata"]["digits"]
        totals.add(len(digits))
        boxes = [digit["box"] for digit in digits]
        sizes |= {box[2] - box[0] for box in boxes}
        drawn = np.zeros((hard.side, hard.side), int)
        for left, top, right, bottom in boxes:
            assert (
                right - left == bottom - top and min(left, top) >= 0 and max(right, bottom) <= 112
            )
            drawn[top:bottom, left:right] += 1
        assert drawn.max() == 1, "no digit hides another"
        styles = [annotation["style"] for annotation in record["annotations"]]
        kinds |= set(styles)
        assert styles.count("vqa2") <= hard.read
        assert 1 <= styles.count("point_count") + styles.count("pointing") <= hard.sought
        places = [digit["place"] for digit in digits]
        for annotation in record["annotations"]:
            if annotation["style"] == "vqa2":
                words = annotation["question"].removeprefix("Which digit is at the ")
                place = hard.places.index(words.removesuffix("?"))
                assert places.count(place) == 1, "a question has one answer"
                assert annotation["answer"] == str(digits[places.index(place)]["digit"])
    assert totals == set(range(3, 10)) and sizes == set(range(12, 29))
    assert kinds == {"vqa2", "point_count", "pointing"}


RECIPES = sorted(  # examples/cluster holds files of schedulers: tests/test_cluster.py
    path for path in (ROOT / "examples").rglob("*.yaml") if path.parent.name != "cluster"
)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_load(recipe: Path):
    assert (ROOT / settings.load(recipe).strategy).is_file()


SCRIPTS = [
    "examples/quickstart.sh",
    "examples/rehearse.sh",
    "tools/setup_venv.sh",
    "tests/run.sh",
    "tests/precompiled/c++",
    ".ci/run",
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse_and_can_be_run(script: str):
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    assert os.access(ROOT / script, os.X_OK)


def test_quickstart_reports_what_it_measured(finished: tuple[Path, str]):
    out, printed = finished
    summary = json.loads((out / "summary.json").read_text())
    assert {
        "reading_accuracy",
        "counting_accuracy",
        "counting_within_1",
        "pointing_f1",
        "train_seconds",
    } <= set(summary)
    assert {
        "tokens_per_second",
        "packing_fill",
        "steps",
        "ranks",
        "strategy",
        "versions",
        "chance",
    } <= set(summary)
    assert (summary["steps"], summary["ranks"], summary["strategy"]["stage"]) == (16, 2, 0)
    assert 0.5 < summary["packing_fill"] <= 1
    assert "tensorboard" in printed and "generate.py" in printed and "reading_accuracy" in printed
    assert (out / "predictions.png").stat().st_size > 10_000
    assert list((out / "captions/tensorboard").iterdir())


def test_quickstart_was_killed_and_went_on_exactly(finished: tuple[Path, str]):
    again = json.loads((finished[0] / "summary.json").read_text())["resume"]
    assert again["resumed_from_step"] == 5  # half of the second stage
    assert again["steps_made_twice"] >= 1
    assert again["largest_difference_of_loss"] == 0.0


def test_quickstart_wrote_shards_of_held_out_scans_for_the_examination(
    finished: tuple[Path, str], compose
):
    held_out = set(compose.load_scans("heldout")[0].tolist())
    for stage in STAGES:
        shards = ShardSet(str(finished[0] / "data" / stage))
        shown = {
            d["scan"] for i in range(len(shards)) for d in shards.record(i)["metadata"]["digits"]
        }
        assert shown <= held_out if stage == "examination" else not shown & held_out


def test_a_second_quickstart_reuses_and_another_is_refused(finished: tuple[Path, str]):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [
            sys.executable,
            str(DIGITS / "quickstart.py"),
            "--out",
            str(finished[0]),
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    before = {p: p.stat().st_mtime_ns for p in finished[0].rglob("*") if p.is_file()}
    again = run("--steps", "16")
    assert again.returncode == 0 and "reading_accuracy" in again.stdout
    other = run("--steps", "40")
    assert (
        other.returncode == 1
        and "holds another run" in other.stderr
        and "Traceback" not in other.stderr
    )
    assert before == {p: p.stat().st_mtime_ns for p in finished[0].rglob("*") if p.is_file()}


def mentions(word: str) -> list[str]:
    """The command lines of processes that name it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [line] if word in line else []
    return found


def test_a_quickstart_that_is_ended_leaves_no_training_behind(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    out = tmp_path / "ended"
    for made in ("data", "tokenizer"):
        shutil.copytree(finished[0] / made, out / made)
    shutil.copy(finished[0] / "job.json", out)
    command = [sys.executable, str(DIGITS / "quickstart.py"), "--out", str(out), "--steps", "16"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    console = out / "captions/console.log"
    until = time.monotonic() + 120
    while not (console.exists() and len(mentions(str(out))) > 1):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.2)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "quickstart: stopped" in said
    assert not mentions(str(out))


def fine_tune(world: World, quickstart: str, out: str) -> dict:
    script = load("examples/digits", "finetune", "compose")
    return script.run(
        script.read_arguments(["--quickstart", quickstart, "--out", out, "--steps", "16"])
    )


def test_the_model_of_the_quickstart_learns_a_new_question(
    finished: tuple[Path, str], tmp_path: Path
):
    """The examination's pictures of a model of 16 steps: nothing read right before; negatives are told after."""
    [told] = run_ranks(fine_tune, 1, str(finished[0]), str(tmp_path / "out"), timeout=400)
    new = "is it a negative? (new)"
    assert told["before"][new]["right"] < told["before"][new]["constant"] < 0.6
    assert told["after"][new]["right"] > 0.9
    with pytest.raises(ValueError, match="is there already; delete it"):
        load("examples/digits", "finetune", "compose").read_arguments(
            ["--quickstart", str(finished[0]), "--out", str(tmp_path / "out")]
        )
    with pytest.raises(ValueError, match="is no finished quickstart"):
        load("examples/digits", "finetune", "compose").read_arguments(
            ["--quickstart", str(tmp_path)]
        )


def test_the_last_row_of_a_log_is_the_last_whole_line(tmp_path: Path):
    report = load("examples/digits", "report")
    log = tmp_path / "log.jsonl"
    assert report.last_row(log) is None
    log.write_text('{"step": 1')
    assert report.last_row(log) is None
    log.write_text('{"step": 1}\n{"step"')
    assert report.last_row(log) == {"step": 1}
    log.write_text("".join(f'{{"step": {n}, "more": "{"x" * 900}"}}\n' for n in range(99)) + "{")
    assert report.last_row(log)["step"] == 98


def test_an_answer_below_a_picture_that_is_cut_says_so() -> None:
    report = load("examples/digits", "report")
    points = " ".join(f'x{i}="{10 * i}.0" y{i}="50.0"' for i in range(1, 6))
    long = f'Counting the <points {points} alt="8">8</points> shows a total of 5.'
    assert report._short("counts", long) == "(10, 50) (20, 50) (30, 50) (... 5."
    short = 'Counting the <point x="10.0" y="20.0" alt="8">8</point> shows a total of 1.'
    assert report._short("counts", short) == "(10, 20) 1."
    assert report._short("points", '<point x="10.0" y="20.0" alt="8">8</point>') == "(10, 20)"
    assert report._short("short_answers", "a" * 40) == "a" * 31 + "..."
    assert report._short("short_answers", "\n") == "(no answer)"
