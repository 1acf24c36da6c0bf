"""PixMo in its published layouts, through tools/download.py to shards and back."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from picture_server import Server, picture
from source_helpers import Hub, build, shown

from molmo_ds.config import PromptConfig
from molmo_ds.data.sample.prompts import PromptFormatter

GONE = "missing/1"  # the server answers 404


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    thing = Server()
    yield thing
    thing.stop()


def test_pixmo_cap(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    url, gone = server.url("good/1"), server.url(GONE)
    rows = [
        {"image_url": gone, "caption": "Lost.", "transcripts": ["lost"]},
        {"image_url": url, "caption": "A red cup.", "transcripts": ["it is a cup", "uh a red cup"]},
    ]
    Hub(tmp_path / "pixmo_cap").parquet(rows)
    [record] = build(tmp_path, "pixmo_cap")
    assert record["__key__"] == "pixmo_cap-00000001"
    assert record["images"] == ["jpg"]
    assert record["annotations"] == [{"style": "long_caption", "text": "A red cup."}]
    assert record["metadata"] == {"image_url": url}
    assert record["pixels"] == [picture(1)]
    report = json.loads((tmp_path / "out" / "pixmo_cap-train" / "report.json").read_text())
    assert report["records"] == 1
    assert report["dropped"] == {"picture not reachable": 1}
    assert report["pictures"]["wanted"] == 2
    assert report["pictures"]["permanent"] == {"HTTP 404": 1}
    said = capsys.readouterr().out
    assert "1 of 2 pictures (50.0 %)" in said
    assert "HTTP 404 (gone for good)" in said

    # a finished data set is left alone; the other view of it finds the pictures in the store
    before = server.hits.copy()
    build(tmp_path, "pixmo_cap")
    assert "is there already" in capsys.readouterr().out
    (tmp_path / "pixmo_cap").rename(tmp_path / "pixmo_cap_transcripts")
    [record] = build(tmp_path, "pixmo_cap_transcripts")
    assert record["annotations"] == [
        {"style": "long_caption", "text": "A red cup."},
        {"style": "transcript", "text": "it is a cup"},
        {"style": "transcript", "text": "uh a red cup"},
    ]
    assert server.hits == before


def test_pixmo_questions(server: Server, tmp_path: Path) -> None:
    url, other = server.url("good/1"), server.url("good/2")
    talk = ["Why?", "So.", "And?", "No."]
    Hub(tmp_path / "pixmo_cap_qa").parquet(
        [
            {"image_url": url, "question": "", "answer": "", "messages": talk},
            {"image_url": other, "question": "What?", "answer": "That.", "messages": None},
            {"image_url": url, "question": "", "answer": "", "messages": ["Who?", "Me."]},
        ]
    )
    first, second = build(tmp_path, "pixmo_cap_qa")
    assert first["annotations"] == [
        {"style": "synthetic_qa", "messages": talk},
        {"style": "synthetic_qa", "messages": ["Who?", "Me."]},
    ]
    assert second["annotations"] == [{"style": "synthetic_qa", "messages": ["What?", "That."]}]

    right, wrong = hashlib.sha256(picture(1)).hexdigest(), "0" * 64
    Hub(tmp_path / "pixmo_ask_model_anything").parquet(
        [
            {
                "image_url": url,
                "image_sha256": right.upper(),
                "question": "How tall?",
                "answer": "Two metres.",
            },
            {
                "image_url": url,
                "image_sha256": wrong,
                "question": "How wide?",
                "answer": "One metre.",
            },
        ]
    )
    [record] = build(tmp_path, "pixmo_ask_model_anything")
    assert record["annotations"] == [
        {"style": "user_qa", "question": "How tall?", "answer": "Two metres."}
    ]
    report = json.loads(
        (tmp_path / "out" / "pixmo_ask_model_anything-train" / "report.json").read_text()
    )
    assert report["pictures"]["permanent"] == {"hash mismatch": 1}


def test_pixmo_points(server: Server, tmp_path: Path) -> None:
    url, sha = server.url("good/1"), hashlib.sha256(picture(1)).hexdigest()
    shared = {"image_url": url, "image_sha256": sha}
    rows = [
        {"points": [{"x": 10.04, "y": 20.0}, {"x": 5.0, "y": 99.96}], "count": 2, "label": "Ears"},
        {"points": [], "count": 0, "label": "hat"},
    ]
    rows = [{**shared, **row, "collection_method": "pointing"} for row in rows]
    for name, style in (("pixmo_points", "pointing"), ("pixmo_points_counting", "point_count")):
        Hub(tmp_path / name).parquet(rows)
        [record] = build(tmp_path, name)
        assert record["annotations"] == [
            {
                "style": style,
                "label": "Ears",
                "points": [[10.04, 20.0], [5.0, 99.96]],
                "point_scale": 100,
            },
            {"style": style, "label": "hat", "points": [], "point_scale": 100},
        ]
    talk = PromptFormatter(PromptConfig(shuffle_messages=False)).conversations(
        record["annotations"], np.random.RandomState(0), (40, 30)
    )
    assert talk[0].messages[1] == (
        ' Counting the <points x1="5.0" y1="100.0" x2="10.0" y2="20.0" alt="ears">ears</points> shows a total of 2.'
    )

    rows = [{**shared, "count": 1, "points": {"x": [20.0], "y": [6.0]}, "label": "dog"}]
    test = [{**shared, "count": 3, "points": {"x": [], "y": []}, "label": "cat"}]
    for name, style in (("pixmo_count", "point_count"), ("pixmo_count_pointing", "pointing")):
        Hub(tmp_path / name).parquet(rows)
        Hub(tmp_path / name).parquet(test, "data/test-00000-of-00001")
        [record] = build(tmp_path, name)
        assert record["annotations"] == [{"style": style, "label": "dog", "points": [[20.0, 6.0]]}]
        assert record["metadata"] == {"image_url": url, "count": 1}
        [record] = build(tmp_path, name, split="test")
        assert record["annotations"] == [{"style": style, "label": "cat"}]
        assert record["metadata"]["count"] == 3
    mask = [[False, False, False], [False, True, True]]
    rows = [{**shared, "label": "dog", "points": [{"x": 50.0, "y": 70.0}], "masks": [mask]}]
    Hub(tmp_path / "pixmo_points_eval").parquet(rows, "data/test-00000-of-00001")
    [record] = build(tmp_path, "pixmo_points_eval", split="test")
    [asked] = record["annotations"]
    assert asked.pop("masks") == [{"height": 2, "width": 3, "runs": [4, 2]}]
    assert asked == {
        "style": "pointing",
        "label": "dog",
        "points": [[50.0, 70.0]],
        "point_scale": 100,
    }

    # the picture is 40 x 30 pixels, so (20, 6) is (50 %, 20 %)
    formatter = PromptFormatter(PromptConfig())
    text = formatter.messages(
        {"style": "pointing", "label": "dog", "points": [[20.0, 6.0]]},
        np.random.RandomState(0),
        (40, 30),
    )
    assert text[1] == ' <point x="50.0" y="20.0" alt="dog">dog</point>'

    places = [[{"x": 30.0, "y": 40.0}], [{"x": 60.0, "y": 1.0}, {"x": 50.0, "y": 2.0}]]
    marks = {
        "alt_text": ["cup", "spoons"],
        "inline_text": ["The cup", "two spoons"],
        "points": places,
    }
    rows = [
        {
            **shared,
            "question": "Where?",
            "response": "",
            "parsed_response": "<|POINT|> is by <|POINT|>.",
            **marks,
        },
        {**shared, "question": "Lost?", "response": "", "parsed_response": None, **marks},
        {
            **shared,
            "question": "Odd?",
            "response": "",
            "parsed_response": "One <|POINT|> only.",
            **marks,
        },
    ]
    Hub(tmp_path / "pixmo_point_explanations").parquet(rows)
    [record] = build(tmp_path, "pixmo_point_explanations")
    [asked] = record["annotations"]
    assert formatter.messages(asked, np.random.RandomState(0))[1] == (
        ' <point x="30.0" y="40.0" alt="cup">The cup</point> is by'
        ' <points x1="50.0" y1="2.0" x2="60.0" y2="1.0" alt="spoons">two spoons</points>.'
    )


def test_pixmo_drawn(tmp_path: Path) -> None:
    for kind, seed in (("charts", 1), ("tables", 2)):
        row = {
            "image": shown(seed, "PNG"),
            "image_id": f"{kind}-7",
            "questions": {"question": ["a", "b"], "answer": ["1", "2"]},
        }
        for name in ("pixmo_docs_charts", "pixmo_docs_tables"):
            Hub(tmp_path / name).parquet([row], f"{kind}/train-00000-of-00001", "image")
    for kind, seed in (("charts", 1), ("tables", 2)):
        [record] = build(tmp_path, f"pixmo_docs_{kind}")
        assert record["images"] == ["png"]
        assert record["pixels"] == [picture(seed, kind="PNG")]
        assert record["metadata"] == {"image_id": f"{kind}-7"}
        style = f"pixmo_docs_{kind}"
        assert record["annotations"] == [
            {"style": style, "question": "a", "answer": "1"},
            {"style": style, "question": "b", "answer": "2"},
        ]
    hub = Hub(tmp_path / "pixmo_clocks")
    known = {
        "example_id": "e5",
        "time_format": "12 hour clock (with AM/PM)",
        "shows_seconds": False,
    }
    known |= {"hour_visible": 3, "minute_visible": 7, "second_visible": -1}
    hub.parquet(
        [
            {**known, "watchface_id": "w", "text": "It is 3:07 PM"},
            {**known, "example_id": "e6", "text": "x"},
        ]
    )
    hub.file("images/e5.png", picture(4, kind="PNG"))
    [record] = build(tmp_path, "pixmo_clocks")
    assert record["annotations"][0]["answer"] == "It is 3:07 PM"
    assert record["annotations"][0]["style"] == "clocks"
    assert record["metadata"] == known
