"""PixMo in its published layouts, through tools/download.py to shards and back."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from picture_server import Server, picture
from source_helpers import Hub, build, shown

GONE = "missing/1"  # the server answers 404


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    thing = Server()
    yield thing
    thing.stop()


def test_pixmo_cap(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    url = server.url("good/1")
    gone = server.url(GONE)
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
        {
            "one_of": [
                {"style": "transcript", "text": "it is a cup"},
                {"style": "transcript", "text": "uh a red cup"},
            ]
        },
    ]
    (tmp_path / "pixmo_cap_transcripts").rename(tmp_path / "pixmo_transcript")
    [record] = build(tmp_path, "pixmo_transcript")
    said = ["it is a cup", "uh a red cup"]
    assert record["annotations"] == [{"one_of": [{"style": "transcript", "text": t} for t in said]}]
    assert server.hits == before


def test_pixmo_questions(server: Server, tmp_path: Path) -> None:
    url = server.url("good/1")
    other = server.url("good/2")
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

    right = hashlib.sha256(picture(1)).hexdigest()
    wrong = "0" * 64
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


def test_questions_about_several_pictures(server: Server, tmp_path: Path) -> None:
    """Every address of a list is fetched; a row of which one is gone is left out."""
    asked = {"question": ["Which is red?"], "answer": ["The second."]}
    urls = [[server.url(f"good/{i}") for i in (1, 2)], [server.url("good/1"), server.url(GONE)]]
    Hub(tmp_path / "pixmo_multi_image_qa_multi_only_max5").parquet(
        [{"image_urls": both, "qa_pairs": asked} for both in urls]
    )
    [record] = build(tmp_path, "pixmo_multi_image_qa_multi_only_max5")
    assert len(record["images"]) == 2 and record["metadata"] == {"image_urls": urls[0]}
    assert [one["answer"] for one in record["annotations"]] == ["The second."]


def test_questions_how_many_are_not_answered_by_points(server: Server, tmp_path: Path) -> None:
    url = server.url("good/1")
    talk = ["Hi?", "Yes.", "How many\nin all?", "Two.", "HOW MANY dogs?", "Three."]
    Hub(tmp_path / "pixmo_cap_qa_as_user_qa").parquet(
        [{"image_url": url, "question": "", "answer": "", "messages": talk}]
    )
    [record] = build(tmp_path, "pixmo_cap_qa_as_user_qa")
    assert record["annotations"] == [{"style": "user_qa", "messages": talk, "no_pointing": True}]
    rows = [
        {"image_url": url, "image_sha256": "", "question": question, "answer": "Two."}
        for question in ("How many?", "How is it?")
    ]
    Hub(tmp_path / "pixmo_ask_model_anything").parquet(rows)
    [record] = build(tmp_path, "pixmo_ask_model_anything")
    assert [one.get("no_pointing") for one in record["annotations"]] == [True, None]
    report = tmp_path / "out" / "pixmo_ask_model_anything-train" / "report.json"
    assert json.loads(report.read_text())["changed"] == {
        "conversations that ask how many and are told not to point": 1
    }


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
    assert record["annotations"] == [
        {"style": "clocks", "question": "What time is being shown?", "answer": "It is 3:07 PM"}
    ]
    assert record["metadata"] == known
    report = json.loads((tmp_path / "out" / "pixmo_clocks-train" / "report.json").read_text())
    assert report["changed"] == {"pictures drawn over": 1}
