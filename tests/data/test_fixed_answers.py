"""Fixed answers about the model itself: our own or the user's, alone or with pictures and videos, by its name."""

import json
from collections import Counter
from pathlib import Path

import pytest
from academic_video_files import VIDEO, Files
from source_helpers import run

from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.review import Review
from molmo_ds.data.sources.fixed_answers import NAME, OWN, read_answers
from molmo_ds.testing.small_videos import png


def build(folder: Path, *options: str) -> list[dict]:
    """The records that the tool writes; all of them can be used."""
    assert run(folder, NAME, "--out", str(folder / "out"), *options) == 0
    shards = ShardSet(str(folder / "out" / f"{NAME}-train"))
    records = [shards.read(i) for i in range(len(shards))]
    for record in records:
        Review().add(record)
    return records


def answers(records: list[dict]) -> str:
    return " ".join(one["answer"] for record in records for one in record["annotations"])


def with_files(folder: Path) -> Files:
    to = Files(folder / NAME)
    for grey in range(3):
        to.file(f"pictures/of/{grey}.png", png(grey))
    to.videos("videos/a.mp4", "videos/b.mp4")
    return to


def test_each_question_comes_with_what_the_reference_draws_as_often(tmp_path: Path) -> None:
    """Nothing 0.35, a picture and a video 0.25 each, two to five pictures 0.15."""
    with_files(tmp_path)
    few = ("--from", str(tmp_path), "--limit", "80")
    records = build(tmp_path, *few)
    kinds: dict[str, Counter] = {}
    for record in records:
        [asked] = record["annotations"]
        assert asked["style"] == "user_qa"
        names = record["images"]
        assert len(names) <= 5
        kind = "mp4" if names == ["mp4"] else min(len(names), 2)
        kinds.setdefault(asked["question"], Counter())[kind] += 1
    assert len(kinds) == 4
    assert all(found == {0: 7, 1: 5, "mp4": 5, 2: 3} for found in kinds.values())
    shown = {pixels for record in records for pixels in record["pixels"]}
    assert shown == {VIDEO, *map(png, range(3))}
    [shard] = (tmp_path / "out" / f"{NAME}-train").glob("*.tar")
    first = shard.read_bytes()
    build(tmp_path, *few, "--overwrite")
    assert shard.read_bytes() == first


def test_without_a_folder_the_questions_stand_alone_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = build(tmp_path)
    assert all(record["images"] == [] for record in records)
    assert "Molmo2-8B" in answers(records) and "{" not in answers(records)
    count = len(records) // 7
    said = capsys.readouterr().out
    assert f"{8 * count} dropped: question without a picture" in said
    assert f"{5 * count} dropped: question without a video" in said


@pytest.mark.parametrize(
    ("model", "name"), [("molmo2_o_7b", "Molmo2-O-7B"), ("Reader of Meters", "Reader of Meters")]
)
def test_the_name_is_the_presets_or_the_users(model: str, name: str, tmp_path: Path) -> None:
    said = answers(build(tmp_path, "--model", model))
    assert name in said and "Molmo2-8B" not in said and "Allen Institute" in said


def test_a_file_of_the_user_replaces_ours(tmp_path: Path) -> None:
    to = with_files(tmp_path)
    own = 'maker: Meters Ltd.\nanswers:\n- questions: ["Who?", "Whose?"]\n  answer: \'{model} of {maker}\'\n'
    to.file("itself.yaml", own.encode())
    records = build(tmp_path, "--from", str(tmp_path), "--model", "M")
    assert len(records) == 40
    assert {one["answer"] for record in records for one in record["annotations"]} == {
        "M of Meters Ltd."
    }
    report = json.loads((tmp_path / "out" / f"{NAME}-train/report.json").read_text())
    assert report["dropped"] == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "maker: m",
        "maker: 3\nanswers: []",
        "maker: m\nanswers: [{questions: Who, answer: me}]",
        "maker: m\nanswers: [{questions: [Who]}]",
        "maker: m\nanswers: [{questions: [1], answer: me}]",
    ],
)
def test_a_file_that_cannot_be_used_is_a_sentence(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Files(tmp_path / NAME).file("itself.yaml", text.encode())
    argv = [NAME, "--from", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run(tmp_path, *argv) == 1
    assert "must hold a text `maker` and a list `answers`" in capsys.readouterr().err


def test_a_file_that_is_no_yaml_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Files(tmp_path / NAME).file("itself.yaml", b"answers: [{questions: [Who?]}]")
    argv = [NAME, "--from", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run(tmp_path, *argv) == 1
    assert "itself.yaml is no YAML: while parsing" in capsys.readouterr().err


def test_our_questions_are_asked_once_each() -> None:
    rows = [row for row in read_answers(None, "train") if row["shown"] == "picture"]
    asked = Counter(row["question"] for row in rows)
    assert set(asked.values()) == {5}
    assert OWN.read_text(encoding="utf-8").startswith("# What a model says of itself.")
