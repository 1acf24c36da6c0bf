"""Molmo2's sets about videos in their published layouts, through tools/download.py to shards and back."""

import json
from pathlib import Path

from source_helpers import Hub, run

from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.review import Review
from molmo_ds.testing.small_videos import film

VIDEO = film([125 * i for i in range(20)])


def build(tmp_path: Path, name: str) -> list[dict]:
    """Run the tool on tmp_path/NAME and read its shards back; every record can be used."""
    folders = ["--from", str(tmp_path), "--out", str(tmp_path / "out"), "--split", "train"]
    assert run(tmp_path, name, *folders, "--attempts", "1") == 0
    shards = ShardSet(str(tmp_path / "out" / f"{name}-train"))
    records = [shards.read(i) for i in range(len(shards))]
    for record in records:
        assert record["durations"] == [2.376]
        Review().add(record)
    return records


def test_videos_with_subtitles_points_and_tracks(tmp_path: Path) -> None:
    said = [{"start": 0.5, "end": 1.0, "text": "hello"}]
    row = {
        "video_id": "v",
        "Question": "Who?",
        "Answer": "you",
        "NegativeAnswers": ["I", "they"],
        "Category": "people",
        "subtitle": said,
    }
    Hub(tmp_path / "molmo2_video_subtitle_qa").parquet([row], "data/SubtitleQA-0")
    (tmp_path / "molmo2_video_subtitle_qa/videos").mkdir()
    (tmp_path / "molmo2_video_subtitle_qa/videos/v.mp4").write_bytes(VIDEO)
    (record,) = build(tmp_path, "molmo2_video_subtitle_qa")
    asked = record["annotations"][0]
    assert sorted(asked["options"]) == ["I", "they", "you"]
    assert asked["options"][asked["answer_index"]] == "you"
    assert record["subtitles"] == [[0.5, 1.0, "hello"]] and record["images"] == ["mp4"]

    point = {
        "video_id": "v",
        "video_duration": 2.376,
        "clip_start": None,
        "clip_end": None,
        "label": "cups",
        "question": "How many?",
        "count": 3,
        "category": "object",
        "two_fps_timestamps": [0.5, 1.0],
        "points": [[{"x": 10.0, "y": 20.0}], [{"x": 1.0, "y": 2.0}, {"x": 50.0, "y": 2.0}]],
    }
    late = {**point, "two_fps_timestamps": [0.5, 99.0]}
    Hub(tmp_path / "molmo2_video_point").parquet([point, late], "object/train-0")
    (tmp_path / "molmo2_video_point/videos").mkdir()
    (tmp_path / "molmo2_video_point/videos/v.mp4").write_bytes(VIDEO)
    (record,) = build(tmp_path, "molmo2_video_point")
    assert record["clip"] == [0.0, 2.376] and "question" not in record["annotations"][0]
    groups = record["annotations"][0]["point_groups"]
    assert [group["time"] for group in groups] == [0.5, 1.0] and groups[1]["points"][1] == [50, 2]
    report = json.loads((tmp_path / "out/molmo2_video_point-train/report.json").read_text())
    assert report["dropped"] == {"no usable annotation": 1}

    moment = {"time": 0.5, "frame": 15}
    ball = {"id": "7", "point": [4.0, 8.0], "occluded": False}
    cup = {"id": "9", "point": [5.0, 9.0], "occluded": True}
    track = {
        "id": "1",
        "video": "w",
        "clip": "w_0",
        "video_dataset": "mose",
        "expression": "the balls",
        "width": 48,
        "height": 32,
        "sampling_fps": 2,
        "mask_id": ["7", "9"],
        "frame_trajectories": [{**moment, "points": [ball, cup, {**ball, "id": "8"}]}],
    }
    Hub(tmp_path / "molmo2_track").parquet([track], "track/train-0")
    (tmp_path / "molmo2_track/videos/mose").mkdir(parents=True)
    (tmp_path / "molmo2_track/videos/mose/w_0.mp4").write_bytes(VIDEO)
    (record,) = build(tmp_path, "molmo2_track")
    assert record["annotations"][0]["tracks"] == [
        {"time": 0.5, "points": {"7": [4.0, 8.0], "9": [5.0, 9.0]}, "hidden": ["9"]}
    ]
