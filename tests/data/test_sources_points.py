"""PixMo's places in their published layouts: what belongs to which set, what is dropped, how pictures are cut."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from picture_server import Server, picture
from source_helpers import Hub, build, run

from molmo_ds.config import PromptConfig
from molmo_ds.data import sources
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sample.review import Review
from molmo_ds.data.sources.fetching import download
from molmo_ds.data.sources.source import Cut, Item, Source
from molmo_ds.data.sources.videos.cut import cut


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    thing = Server()
    yield thing
    thing.stop()


def shared(server: Server, number: int = 1) -> dict[str, str]:
    sha = hashlib.sha256(picture(number)).hexdigest()
    return {"image_url": server.url(f"good/{number}"), "image_sha256": sha}


def row(server: Server, count: int, method: str = "pointing", number: int = 1) -> dict:
    places = [{"x": float(i), "y": 5.0} for i in range(count)]
    known = {"points": places, "count": count, "label": f"{count} things"}
    return {**shared(server, number), **known, "collection_method": method}


def report_of(tmp_path: Path, name: str) -> dict:
    return json.loads((tmp_path / "out" / f"{name}-train" / "report.json").read_text())


@pytest.fixture
def evaluated(server: Server, tmp_path: Path) -> None:
    """The evaluation set: one picture, number 3."""
    mask = [[False, False, False], [False, True, True]]
    known = {"label": "dog", "points": [{"x": 50.0, "y": 70.0}], "masks": [mask]}
    rows = [{**shared(server, 3), **known}]
    Hub(tmp_path / "pixmo_points_eval").parquet(rows, "data/test-00000-of-00001")


def test_each_set_has_the_rows_of_its_collection_method(
    server: Server, tmp_path: Path, evaluated: None
) -> None:
    rows = [row(server, 2), row(server, 3, "counting"), row(server, 4), row(server, 0)]
    for name, style, counts in (
        ("pixmo_points", "pointing", [2, 4, 0]),
        ("pixmo_points_counting", "point_count", [2, 4, 0]),
        ("pixmo_points_high_freq", "pointing", [3]),
        ("pixmo_points_high_freq_counting", "point_count", [3]),
    ):
        Hub(tmp_path / name).parquet(rows)
        [record] = build(tmp_path, name)
        assert [len(one["points"]) for one in record["annotations"]] == counts
        assert {one["style"] for one in record["annotations"]} == {style}
        [dropped] = report_of(tmp_path, name)["dropped"].items()
        assert dropped[0].startswith("row whose collection_method is not")
        assert dropped[1] == len(rows) - len(counts)


def test_pictures_of_the_evaluation_set_are_left_out(
    server: Server, tmp_path: Path, evaluated: None, capsys: pytest.CaptureFixture
) -> None:
    moved = {**row(server, 1, number=3), "image_url": server.url("good/4")}  # another address
    rows = [row(server, 2), row(server, 3, number=3), moved]
    Hub(tmp_path / "pixmo_points").parquet(rows)
    [record] = build(tmp_path, "pixmo_points")
    assert record["metadata"] == {"image_url": server.url("good/1")}
    assert report_of(tmp_path, "pixmo_points")["dropped"] == {
        "row of a picture of pixmo_points_eval": 2
    }
    assert "2 dropped: row of a picture of pixmo_points_eval" in capsys.readouterr().out
    kept = build(tmp_path, "pixmo_points", "--evaluation-pictures", "--overwrite")
    assert len(kept) == 3


def test_without_the_list_of_evaluation_pictures_nothing_is_written(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = download.load_rows

    def rows(source: Source, split: str, folder: Path | None) -> object:
        if source.name == "pixmo_points_eval":
            assert (split, folder) == ("test", None)  # of the hub
            raise ValueError("allenai/pixmo-points-eval cannot be had from the hub.")
        return real(source, split, folder)

    monkeypatch.setattr(download, "load_rows", rows)
    Hub(tmp_path / "pixmo_points").parquet([row(server, 2)])
    argv = ["pixmo_points", "--from", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run(tmp_path, *argv) == 1
    said = capsys.readouterr().err
    assert "the pictures of pixmo_points_eval must be left out" in said
    assert "--evaluation-pictures" in said
    assert not (tmp_path / "out" / "pixmo_points-train").exists()


def test_points_in_several_pictures(server: Server, tmp_path: Path, evaluated: None) -> None:
    """Labels are one thing but for case, blanks and marks; a row with a picture of the evaluation set is left out."""

    def several(labels: list[str], *numbers: int) -> dict:
        urls = [server.url(f"good/{number}") for number in numbers]
        places = [[{"x": 10.0 * i - 1, "y": 101.0}] * i for i in range(len(labels))]
        return {"image_urls": urls, "points": places, "labels": labels, "counts": [0, 1, 2]}

    rows = [several(["Red cup", "a dog", "red  cup."], 1, 2, 4), several(["x", "y"], 1, 3)]
    rows += [several(["x"], 1), several(["x", "y", "z"], 1, 2)]
    Hub(tmp_path / "pixmo_multi_points").parquet(rows)
    folders = ["--from", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run(tmp_path, "pixmo_multi_points", *folders) == 0
    shards = ShardSet(str(tmp_path / "out" / "pixmo_multi_points-train"))
    assert len(shards) == 1
    record = shards.read(0)
    Review().add(record)
    assert record["metadata"]["image_urls"] == rows[0]["image_urls"]
    assert len(record["images"]) == 3
    [drawn] = record["annotations"]
    cups = [{"image": 1, "points": []}, {"image": 3, "points": [[19, 100]] * 2}]
    dog = [{"image": 2, "points": [[9, 100]]}]
    assert [
        (one["style"], one["label"], one["point_groups"], one["point_scale"])
        for one in drawn["one_of"]
    ] == [
        (style, label, groups, 100)
        for label, groups in (("Red cup", cups), ("a dog", dog))
        for style in ("multi_image_pointing", "multi_image_point_then_count")
    ]
    assert report_of(tmp_path, "pixmo_multi_points")["dropped"] == {
        "row of a picture of pixmo_points_eval": 1,
        "less than 2 or more than 5 pictures": 1,
        "another number of pictures than of labels or of groups of points": 1,
    }


def test_many_points_are_dropped_or_split(server: Server, tmp_path: Path, evaluated: None) -> None:
    counts = [40, 41, 20, 61, 60]
    rows = [row(server, count) for count in counts]
    Hub(tmp_path / "pixmo_points").parquet(rows)
    [record] = build(tmp_path, "pixmo_points")
    assert [len(one["points"]) for one in record["annotations"]] == [40, 20]
    assert report_of(tmp_path, "pixmo_points")["dropped"] == {
        "annotation of more than 40 points": 3
    }
    [record] = build(tmp_path, "pixmo_points", "--max-points", "0", "--overwrite")
    assert [len(one["points"]) for one in record["annotations"]] == counts

    Hub(tmp_path / "pixmo_points_train").parquet(rows)
    records = build(tmp_path, "pixmo_points_train")
    # 40 + 41 are more than 60, so are 41 + 20 and 20 + 60; each record comes twice
    sizes = [[len(one["points"]) for one in record["annotations"]] for record in records]
    assert sizes == [[40], [40], [41], [41], [20], [20], [60], [60]]
    styles = [record["annotations"][0]["style"] for record in records]
    assert styles == ["point_count", "pointing"] * 4
    assert report_of(tmp_path, "pixmo_points_train")["dropped"] == {
        "annotation of more than 60 points": 1
    }


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Cut(halve=True), [3, 2]),
        (Cut(annotations=2), [2, 2, 1]),
        (Cut(halve=True, annotations=2), [2, 1, 2]),
        (Cut(points_of_record=3), [2, 1, 1, 1]),  # points 1, 2, 3, 4, 5
        (Cut(points=2), [2]),
        (Cut(points=0), []),
        (Cut(styles=("a", "b")), [5, 5]),
    ],
)
def test_pictures_are_cut(how: Cut, expected: list[int]) -> None:
    annotations = [{"style": "x", "points": [[0.0, 0.0]] * n} for n in (1, 2, 3, 4, 5)]
    dropped: Counter = Counter()
    records = cut(Item((), annotations, {"a": 1}), how, dropped)
    assert [len(record.annotations) for record in records] == expected
    assert all(record.metadata == {"a": 1} for record in records)
    kept = sum(expected) // max(1, len(how.styles))
    assert sum(dropped.values()) == 5 - kept


def test_points_of_groups_and_alternatives_count() -> None:
    """--max-points is for every set; Molmo2's points stand in groups, and several of these in `one_of`."""
    groups = [{"time": time, "points": [[1, 2]] * 2} for time in (0.0, 0.5)]
    four = {"style": "video_point", "label": "cup", "point_groups": groups}
    one = {"style": "pointing", "label": "cup", "points": [[1, 2]]}
    item = Item((), [{"one_of": [one, four]}, one, four])
    dropped: Counter = Counter()
    [kept] = cut(item, Cut(points=3), dropped)
    assert kept.annotations == [one]
    assert dropped == {"annotation of more than 3 points": 2}
    sizes = [len(part.annotations) for part in cut(item, Cut(points_of_record=5), Counter())]
    assert sizes == [2, 1]


def test_one_annotation_is_not_halved() -> None:
    records = cut(Item((), [{"style": "x"}]), Cut(halve=True), Counter())
    assert [record.annotations for record in records] == [[{"style": "x"}]]


def test_points_and_counts_as_text(server: Server, tmp_path: Path, evaluated: None) -> None:
    places = [{"x": 10.04, "y": 20.0}, {"x": 5.0, "y": 99.96}]
    known = {"points": places, "count": 2, "label": "Ears", "collection_method": "pointing"}
    Hub(tmp_path / "pixmo_points_counting").parquet([{**shared(server), **known}])
    [record] = build(tmp_path, "pixmo_points_counting")
    [asked] = record["annotations"]
    assert asked["point_scale"] == 100
    talk = PromptFormatter(PromptConfig()).messages(asked, np.random.RandomState(0), (40, 30))
    assert talk[1] == (
        ' Counting the <points x1="5.0" y1="100.0" x2="10.0" y2="20.0" alt="ears">ears</points> shows a total of 2.'
    )
    [record] = build(tmp_path, "pixmo_points_eval", split="test")
    [asked] = record["annotations"]
    assert asked.pop("masks") == [{"height": 2, "width": 3, "runs": [4, 2]}]
    expected = {"label": "dog", "points": [[50.0, 70.0]], "point_scale": 100}
    assert asked == {"style": "pointing", **expected}


def test_later_sets_move_points_outside_to_the_edge() -> None:
    """As the reference's later loader does; the earlier one writes them as they are."""
    places = [{"x": -0.4, "y": 50.0}, {"x": 30.0, "y": 100.7}]
    row = {"image_url": "http://a", "label": "cup", "points": places}
    for name in ("pixmo_points_train", "pixmo_points_high_freq_train"):
        [item] = sources.get(name).adapt(row, "train")
        assert item.annotations[0]["points"] == [[0.0, 50.0], [30.0, 100.0]]
    [item] = sources.get("pixmo_points").adapt(row, "train")
    assert item.annotations[0]["points"] == [[-0.4, 50.0], [30.0, 100.7]]


def test_pixmo_count_points_and_says_that_it_counted(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [{**shared(server), "count": 1, "points": {"x": [20.0], "y": [6.0]}, "label": "dog"}]
    rows *= 2  # each row is a record, though they show one picture
    test = [{**shared(server), "count": 3, "points": {"x": [], "y": []}, "label": "cat"}]
    for name, styles in (
        ("pixmo_count", ["pointing"]),
        ("pixmo_count_counting", ["point_count"]),
        ("pixmo_count_train", ["point_count", "pointing"]),
    ):
        Hub(tmp_path / name).parquet(rows)
        Hub(tmp_path / name).parquet(test, "data/test-00000-of-00001")
        records = build(tmp_path, name)
        assert [record["annotations"] for record in records] == [
            [{"style": style, "label": "dog", "points": [[20.0, 6.0]]}] for style in styles * 2
        ]
        assert records[0]["metadata"] == {"image_url": server.url("good/1"), "count": 1}
        said = capsys.readouterr().err
        assert ("until 2026-11-29 it counted here" in said) == (name == "pixmo_count")
    [record] = build(tmp_path, "pixmo_count_counting", split="test")
    assert record["annotations"] == [{"style": "point_count", "label": "cat"}]
    assert record["metadata"]["count"] == 3
    # the picture is 40 x 30 pixels, so (20, 6) is (50 %, 20 %)
    asked = {"style": "pointing", "label": "dog", "points": [[20.0, 6.0]]}
    text = PromptFormatter(PromptConfig()).messages(asked, np.random.RandomState(0), (40, 30))
    assert text[1] == ' <point x="50.0" y="20.0" alt="dog">dog</point>'

    # a folder of an earlier version is not taken for this one
    note = tmp_path / "out" / "pixmo_count-train" / "report.json"
    note.write_text(json.dumps({"records": 1, "dropped": {}}))
    argv = ["pixmo_count", "--from", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run(tmp_path, *argv) == 1
    assert "was written by an earlier version. pixmo_count points" in capsys.readouterr().err


def test_explanations_are_halved(server: Server, tmp_path: Path) -> None:
    places = [[{"x": 30.0, "y": 40.0}], [{"x": 60.0, "y": 1.0}, {"x": 50.0, "y": 2.0}]]
    marks = {
        "alt_text": ["cup", "spoons"],
        "inline_text": ["The cup", "two spoons"],
        "points": places,
    }
    rows = [
        {**shared(server), "question": question, "response": "", "parsed_response": text, **marks}
        for question, text in (
            ("Where?", "<|POINT|> is by <|POINT|>."),
            ("Lost?", None),
            ("Odd?", "One <|POINT|> only."),
            ("And?", "<|POINT|><|POINT|>"),
            ("So?", "<|POINT|>, <|POINT|>"),
        )
    ]
    Hub(tmp_path / "pixmo_pointing_explanations").parquet(rows)
    first, second = build(tmp_path, "pixmo_pointing_explanations")
    assert [one["question"] for one in first["annotations"]] == ["Where?", "And?"]
    assert [one["question"] for one in second["annotations"]] == ["So?"]
    assert PromptFormatter(PromptConfig()).messages(
        first["annotations"][0], np.random.RandomState(0)
    )[1] == (
        ' <point x="30.0" y="40.0" alt="cup">The cup</point> is by'
        ' <points x1="50.0" y1="2.0" x2="60.0" y2="1.0" alt="spoons">two spoons</points>.'
    )
    assert report_of(tmp_path, "pixmo_pointing_explanations")["dropped"] == {
        "answer that its publishers could not parse": 1,
        "answer with another number of placeholders than of groups of points": 1,
    }
