"""Molmo2's sets about videos in their published layouts, through tools/download.py to shards and back."""

import json
from pathlib import Path

import pytest
from source_helpers import Hub, run

from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.review import Review
from molmo_ds.data.sources import ALL, get
from molmo_ds.data.sources.fetching.rows import split_files
from molmo_ds.data.sources.source import LeftOut
from molmo_ds.data.sources.videos.cut import merge
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
    crowd = {**point, "count": 61}
    Hub(tmp_path / "molmo2_video_point").parquet([point, late, crowd], "object/train-0")
    (tmp_path / "molmo2_video_point/videos").mkdir()
    (tmp_path / "molmo2_video_point/videos/v.mp4").write_bytes(VIDEO)
    (record,) = build(tmp_path, "molmo2_video_point")
    assert record["clip"] == [0.0, 2.376] and "question" not in record["annotations"][0]
    groups = record["annotations"][0]["point_groups"]
    assert [group["time"] for group in groups] == [0.5, 1.0] and groups[1]["points"][1] == [50, 2]
    report = json.loads((tmp_path / "out/molmo2_video_point-train/report.json").read_text())
    many = "annotation with less than 0 or more than 60 points"
    late = "points outside of the clip, or a clip in which nothing is to be seen"
    assert report["dropped"] == {late: 1, many: 1}

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


def test_captions_and_questions_of_a_video_are_one_record() -> None:
    row = {"video_id": "v", "annotation_score": 3, "video_start": None, "video_end": None}
    row |= {"merged_caption": "Merged.", "video_caption": "", "video_frame_merged_caption": "Long."}
    (item,) = ALL["molmo2_cap"].adapt(row, "train")
    assert [one["style"] for one in item.annotations] == [
        "video_merged_caption",
        "video_long_caption",
    ]
    with pytest.raises(LeftOut, match="low score"):
        ALL["molmo2_cap"].adapt({**row, "annotation_score": 2}, "train")
    asked = {"video_id": "v", "Question": "Who?", "Answer": "you", "NegativeAnswers": ["I"]}
    said = [{"start": 0.5, "end": 1.0, "text": "hello"}]
    source = ALL["molmo2_video_subtitle_qa"]
    assert source.group == "video_id"
    items = [source.adapt({**asked, "subtitle": said}, "train")[0] for _ in range(2)]
    both = merge(items)
    assert len(both.annotations) == 2 and both.about == {"subtitles": [[0.5, 1.0, "hello"]]}


def test_points_lie_on_the_half_seconds_of_their_clip() -> None:
    row = {"video_id": "v", "video_duration": 99.0, "clip_start": 1.2, "clip_end": 20.0}
    row |= {"label": "Cups", "question": "How many?", "count": 2, "category": "object"}
    row |= {"two_fps_timestamps": [1.5, 3.5], "points": [[{"x": 1, "y": 2}], [{"x": 3, "y": 4}]]}
    (item,) = ALL["molmo2_video_point_minmax_0_5"].adapt(row, "train")
    count, point = item.annotations[0]["one_of"]
    assert [count["style"], point["style"]] == ["video_point_count", "video_point"]
    assert "question" in count and "question" not in point
    assert [group["time"] for group in point["point_groups"]] == [0.0, 2.0]
    with pytest.raises(LeftOut, match="less than 6"):
        ALL["molmo2_video_point_minmax_6_25"].adapt(row, "train")


@pytest.mark.parametrize(
    ("duration", "clip", "times", "shown"),
    [
        (10.0, (None, None), [2.0, 10.0], [0.0, 10.0]),
        (10.0, (3.0, 4.0), [2.0], [0.0, 10.0]),  # a short video is shown whole
        (10.0, (0.0, 64.0), [2.0], "more than 63"),
        (99.0, (None, None), [2.0], "without a clip"),
        (99.0, (30.0, 30.0), [30.0], "without a length"),
        (99.0, (60.0, 100.0), [70.0], "beyond the video's end"),
        (99.0, (30.0, 60.0), [60.5], "outside of the clip"),
        (99.0, (30.0, 60.0), [60.0], [30.0, 60.0]),
        (99.0, (30.0, 60.0), [], "nothing is to be seen"),
        (99.0, (0.0, 63.0), [], [0.0, 63.0]),
        (10.0, (None, None), [], [0.0, 10.0]),
    ],
)
def test_clips_of_points_are_those_of_the_reference(
    duration: float, clip: tuple, times: list[float], shown: list[float] | str
) -> None:
    """What allenai/molmo2 f3cb108's Molmo2VideoPoint gave for these rows, or left out."""
    row = {"video_id": "v", "video_duration": duration, "clip_start": clip[0], "clip_end": clip[1]}
    row |= {"two_fps_timestamps": times, "points": [[{"x": 1.0, "y": 2.0}] for _ in times]}
    row |= {"label": "cup", "question": "q", "category": "object", "count": len(times)}
    adapt = ALL["molmo2_video_point_minmax_0_5"].adapt
    if isinstance(shown, str):
        with pytest.raises(LeftOut, match=shown):
            adapt(row, "train")
        return
    [item] = adapt(row, "train")
    assert item.about == {"clip": shown}


def test_damaged_videos_and_options_without_letters() -> None:
    row = {"video_id": "NyuA4FatDQk", "annotation_score": 5, "merged_caption": "A cup."}
    with pytest.raises(LeftOut, match="damaged"):
        ALL["molmo2_cap"].adapt(row, "train")
    row = {"question": "Who?\n(A) she (1)\n B) he\nC. it.\nthey (all)", "answer": "A"}
    row |= {"uid": 1, "key": "k", "type": "t", "question_type": []}
    [item] = ALL["lvbench"].adapt(row, "test")
    assert item.metadata["options"] == ["she (1)", "he", "it.", "they (all)"]
    lines = item.annotations[0]["question"].split("\n")
    assert lines[:3] == ["Who?", "A. she (1)", "B. he"]


def test_marks_of_academic_videos(tmp_path: Path) -> None:
    moment = {
        "frame": 3,
        "time": 0.5,
        "points": [{"id": 7, "point": [4.0, 8.0], "occluded": False}],
    }
    row = {"id": "1", "video": "w", "expression": "the ball", "width": 48, "height": 32, "fps": 6}
    row |= {"sampling_fps": 2, "mask_id": ["7"], "frame_trajectories": [moment]}
    uneven = {**row, "sampling_fps": 4}
    Hub(tmp_path / "tnllt_single_point_track").parquet([row, uneven], "tnnlt/train-0")
    (tmp_path / "tnllt_single_point_track/videos").mkdir()
    (tmp_path / "tnllt_single_point_track/videos/w.mp4").write_bytes(VIDEO)
    (record,) = build(tmp_path, "tnllt_single_point_track")
    (asked,) = record["annotations"]
    assert asked["track_fps"] == 2 and "question" not in asked
    assert record["frame_rates"] == [1, 2, 3, 6]
    assert asked["tracks"] == [{"time": 0.5, "points": {"7": [4.0, 8.0]}, "hidden": []}]
    report = json.loads((tmp_path / "out/tnllt_single_point_track-train/report.json").read_text())
    assert report["dropped"] == {"track at a rate that does not divide the video's": 1}

    point = {
        "subset": "s",
        "video_name": "w",
        "category": "Cup",
        "count": 2,
        "video_duration": 90.0,
    }
    point |= {"clip_start_time": 30.0, "clip_end_time": 60.0, "timestamps": [31.0, 30.5]}
    point |= {"points": [[{"x": 1.0, "y": 2.0}], [{"x": 3.0, "y": 4.0}]]}
    source = get("academic_video_points")
    (item,) = source.adapt(point, "train")
    groups = item.annotations[0]["one_of"][0]["point_groups"]
    assert [(group["time"], group["points"]) for group in groups] == [
        (0.5, [[3, 4]]),
        (1.0, [[1, 2]]),
    ]
    assert item.about == {"clip": [30.0, 60.0]} and item.pictures[0].path == "videos/s/w.mp4"
    with pytest.raises(LeftOut, match="between half seconds"):
        source.adapt({**point, "clip_start_time": 30.2}, "train")


def test_the_references_mixture_of_tracks_is_known() -> None:
    names = [name for name in ALL if name.endswith(("_track", "_ground"))]
    assert len(names) == 35


def test_pictures_of_fine_tuning() -> None:
    """Several CoSyn pages, Mantis' options and PixMo's questions about two to five pictures."""
    told = {"question": ["How many?"], "explanation": ["Two bars."], "answer": ["2"]}
    row = {"id": "7", "images": ["a.png", "b.png"], "qa_pairs": told, "metadata": {"num_images": 2}}
    (item,) = ALL["cosyn_multidoc_doc_exp"].adapt(row, "train")
    assert [one.path for one in item.pictures] == ["a.png", "b.png"]
    (asked,) = item.annotations
    assert asked["style"] == "cosyn_doc_exp" and asked["answer"] == "Two bars. Answer: 2"
    with pytest.raises(LeftOut, match="more than 5 pictures"):
        ALL["cosyn_multidoc_doc"].adapt({**row, "metadata": {"num_images": 6}}, "train")

    row = {"example_id": "n", "subset": "nlvr2", "images": ["x/1.jpg", "x/2.jpg"]}
    row |= {
        "mc_question": ["Same?", "Where?"],
        "choices": [["yes", "no"], ["here", "there", "far"]],
    }
    row |= {"correct_choice_idx": [1, 0]}
    (item,) = ALL["mantis_instruct_nlvr2_multi_only"].adapt(row, "train")
    for asked, options, right in zip(item.annotations, row["choices"], ("no", "here")):
        assert asked["style"] == "mantis_instruct_mc"
        assert sorted(asked["options"]) == sorted(options)
        assert asked["options"][asked["answer_index"]] == right
    alone = {**row, "images": ["x/1.jpg"]}
    with pytest.raises(LeftOut, match="less than 2 pictures"):
        ALL["mantis_instruct_nlvr2_multi_only"].adapt(alone, "train")
    assert ALL["mantis_instruct_nlvr2"].adapt(alone, "train")

    row = {"image_urls": ["http://a", "http://b"]}
    row["qa_pairs"] = {"question": ["How many cups?", "Which?"], "answer": ["3", "The left."]}
    (item,) = ALL["pixmo_multi_image_qa_multi_only_max5"].adapt(row, "train")
    assert [one.url for one in item.pictures] == ["http://a", "http://b"]
    assert [one.get("no_pointing") for one in item.annotations] == [True, None]
    with pytest.raises(LeftOut, match="less than 2 or more than 5 pictures"):
        ALL["pixmo_multi_image_qa_multi_only_max5"].adapt(
            {**row, "image_urls": ["http://a"]}, "train"
        )


def test_a_configuration_is_its_own_folder(tmp_path: Path) -> None:
    """`track` is a word of single_point_track, whose rows are another set's; files without folders are named."""
    whole = [
        "track/train-0.parquet",
        "single_point_track/train-0.parquet",
        "ground/train-0.parquet",
    ]
    flat = ["track-train.parquet", "ground-train.parquet"]
    for folder, names in (("whole", whole), ("flat", flat)):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        for task in ("track", "ground"):
            found = split_files(get(f"molmo2_{task}"), "train", tmp_path / folder)
            assert [path.relative_to(tmp_path / folder).parts[0] for path in found] == [
                task if folder == "whole" else f"{task}-train.parquet"
            ]


def test_sets_whose_videos_are_the_users_say_where_they_go(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Their rows are the hub's, so nothing else would."""
    row = {"video_id": "v", "question": "Who?", "answer": "me"}
    Hub(tmp_path / "molmo2_ask_model_anything").parquet([row], "data/HumanQA-0")
    folders = ["--from", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run(tmp_path, "molmo2_ask_model_anything", *folders) == 1
    said = capsys.readouterr().err
    assert "picture file missing (1)" in said and "videos into DIR/NAME/videos" in said
