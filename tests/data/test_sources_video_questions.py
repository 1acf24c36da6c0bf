"""Academic sets that ask about videos: files as they are published, through the tool to what Molmo2's reference learns.

tests/data/video_questions.json has what the classes of allenai/molmo2 (f3cb108, olmo/data/academic_video_datasets.py)
gave for the same files; of Paxion's questions, whose sentences are our own here, their places.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from source_helpers import run
from video_question_files import FILES, write

from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.footage import subtitles
from molmo_ds.data.sample.review import Review
from molmo_ds.data.sources import get
from molmo_ds.data.sources.videos.clipped_actions import QUESTIONS, cleaned
from molmo_ds.data.sources.videos.spoken_shows import spoken
from molmo_ds.data.video import frames_at

REFERENCE = json.loads((Path(__file__).parent / "video_questions.json").read_text())
FOUND_DAMAGED = "question about a video that allenai/molmo2 found damaged"
NOT_THERE = "picture file missing"
DROPPED: dict[str, dict[str, int]] = {
    "tgif": {NOT_THERE: 1},
    "news_video_qa_filtered": {"question without an answer": 1, FOUND_DAMAGED: 1},
    "social_iq2": {NOT_THERE: 1, "question whose right option is not there": 1},
    "sportsqa_oe": {
        "question whose video is not there": 1,
        "question whose video is an AVI file; turn it into an MP4": 1,
    },
    "clevrer": {"question with several right options, or none": 2},
    "star": {"question none of whose options is its answer": 1},
    "funqa": {
        "question of a task that allenai/molmo2 leaves out": 3,
        "question whose video is not there, or in another split": 2,
        "question whose right option is not there": 2,
    },
    "tvqa_with_sub": {
        "question without times": 1,
        "question without a picture": 1,
        "question about a clip that allenai/molmo2 found damaged": 1,
    },
    "cinepile_with_sub": {NOT_THERE: 1},
    "paxion": {"clip without a length": 1, FOUND_DAMAGED: 2},
    "how2qa": {
        "clip without a length": 1,
        "question about a video of which no clip is there": 1,
        FOUND_DAMAGED: 1,
        NOT_THERE: 1,
    },
}


def build(tmp_path: Path, name: str) -> tuple[list[dict], dict[str, Any]]:
    """Run the tool on tmp_path/NAME; its records, all of which can be used, and its report."""
    folders = ["--from", str(tmp_path), "--out", str(tmp_path / "out"), "--split", "train"]
    assert run(tmp_path, name, *folders) == 0
    folder = tmp_path / "out" / f"{name}-train"
    shards = ShardSet(str(folder))
    records = [shards.read(i) for i in range(len(shards))]
    for record in records:
        Review().add(record)
    return records, json.loads((folder / "report.json").read_text())


def expected(name: str, frames: dict[str, int]) -> list[dict[str, Any]]:
    """What the reference gives of the videos that are there, with the seconds that they last."""
    rows = []
    for row in REFERENCE[name]:
        if "pictures" in row:
            seconds = row["pictures"] / row["rate"]
        else:
            home = next(
                (place for place in frames if f"/{row['video']}".endswith(f"/{place}")), None
            )
            if home is None:
                continue
            seconds = (125 * (frames[home] - 1) + 1) / 1000
        known = {key: row[key] for key in ("clip", "subtitles", "asked") if key in row}
        rows.append({**known, "seconds": pytest.approx(seconds)})
    return sorted(rows, key=_order)


def found(name: str, records: list[dict]) -> list[dict[str, Any]]:
    """The same of our records."""
    rows = []
    for record in records:
        asked = [dict(one) for one in record["annotations"]]
        for one in asked if name == "paxion" else []:
            one["question"] = QUESTIONS.index(one["question"])
        row = {"asked": asked, "seconds": record["durations"][0]}
        if "clip" in record:
            row["clip"] = [round(time, 9) for time in record["clip"]]
        if "subtitles" in record:
            row["subtitles"] = rounded(record["subtitles"])
        rows.append(row)
    return sorted(rows, key=_order)


def rounded(said: Any) -> Any:
    """Subtitles whose times were not made of other times."""
    if isinstance(said, str):
        return said
    return [[round(begin, 9), round(end, 9), text] for begin, end, text in said]


def _order(row: dict[str, Any]) -> str:
    return json.dumps(row["asked"][0]) + str(row.get("clip"))


@pytest.mark.parametrize("name", FILES)
def test_what_is_learnt_is_the_references(name: str, tmp_path: Path) -> None:
    frames = write(tmp_path / name, name)
    records, report = build(tmp_path, name)
    mine = found(name, records)
    theirs = expected(name, frames)
    if name == "how2qa":  # whose right option is drawn there without a seed
        for row in (*mine, *theirs):
            row["asked"] = [apart(one) for one in row["asked"]]
        mine.sort(key=_order)
        theirs.sort(key=_order)
    assert mine == theirs
    assert report["dropped"] == DROPPED.get(name, {})


def apart(asked: dict[str, Any]) -> dict[str, Any]:
    """A question with its wrong options in their order and its right one."""
    options = list(asked["options"])
    right = options.pop(asked["answer_index"])
    return {"question": asked["question"], "wrong": options, "right": right}


def test_pictures_of_a_show_are_a_video_of_the_same_times(tmp_path: Path) -> None:
    """Each picture is its JPEG as it lies there, shown for a third of a second, those that are missing left out."""
    write(tmp_path / "tvqa_with_sub", "tvqa_with_sub")
    records, _ = build(tmp_path, "tvqa_with_sub")
    first, second = (record["pixels"][0] for record in records)
    folder = tmp_path / "tvqa_with_sub/video-frames/frames_hq/castle_frames"
    for number in (5, 6, 7):
        data = (folder / f"castle_s01_clip_00/{number:05d}.jpg").read_bytes()
        assert data in first
        [shown] = frames_at(first, [(number - 5) / 3 + 0.1])
        assert np.abs(shown.astype(int) - np.asarray(Image.open(io.BytesIO(data)))).max() <= 2
    assert (folder / "castle_s01_clip_01/00003.jpg").read_bytes() in second
    assert [record["durations"][0] for record in records] == pytest.approx([1, 2 / 3])


def test_a_list_of_missing_clips_is_heeded(tmp_path: Path) -> None:
    folder = tmp_path / "tvqa_with_sub"
    write(folder, "tvqa_with_sub")
    (folder / "missing_clips.txt").write_text("castle_frames/castle_s01_clip_01:0-1.0\n")
    records, report = build(tmp_path, "tvqa_with_sub")
    assert len(records) == 1
    assert report["dropped"]["question that missing_clips.txt names"] == 1


def test_lines_that_begin_before_a_clip_are_said() -> None:
    lines = [{"start": 0.5, "end": 2, "text": "a"}, {"start": 3, "end": 4, "text": "b"}]
    said = spoken(lines, 1, 3)
    assert said == [[-0.5, 1.0, "a"]]
    assert subtitles({"subtitles": said}, [0.0], 1.0) == "subtitle\n-0.5 - 1.0 a\n"
    twice = [{"start": 1, "end": 2, "text": text} for text in ("first", "last")]
    assert spoken(twice, 1, 3) == [[0.0, 1.0, "last"]]
    assert spoken("none", 1, 3) == []


def test_what_ego4d_says_is_a_sentence() -> None:
    assert [cleaned(text) for text in ("#C C opens", "c opens", "# c", "", "#")] == [
        *("C opens", "C opens", "# c", "", "#")
    ]


def test_cells_that_pandas_takes_for_none_are_options(tmp_path: Path) -> None:
    folder = tmp_path / "nextqa_mc"
    write(folder, "nextqa_mc")
    table = folder / "train.csv"
    table.write_text(table.read_text().replace("to win", "None"))
    records, _ = build(tmp_path, "nextqa_mc")
    options = [one["options"][0] for record in records for one in record["annotations"]]
    assert sorted(options) == ["None", "a", "f"]


def test_two_files_of_a_part_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "llava_video_mc_academic"
    write(folder, "llava_video_mc_academic")
    (folder / "1_2_m_nextqa/old_mc.json").write_text("[]")
    out = str(tmp_path / "out")
    assert run(tmp_path, "llava_video_mc_academic", "--from", str(tmp_path), "--out", out) == 1
    assert "but should have one such file" in capsys.readouterr().err


def test_a_file_that_is_not_as_published_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "clevrer", "clevrer")
    (tmp_path / "clevrer/train.json").write_text('[{"video": "video_00001.mp4"}]')
    assert run(tmp_path, "clevrer", "--from", str(tmp_path), "--out", str(tmp_path / "out")) == 1
    assert "has no column 'video_filename'" in capsys.readouterr().err


def test_a_picture_of_a_show_that_is_none_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "tvqa_with_sub"
    write(folder, "tvqa_with_sub")
    place = "video-frames/frames_hq/castle_frames/castle_s01_clip_01/00001.jpg"
    (folder / place).write_bytes(b"no picture")
    records, report = build(tmp_path, "tvqa_with_sub")
    assert len(records) == 1
    assert report["dropped"]["part of a clip whose first picture cannot be read"] == 1


def test_what_is_missing_is_said_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in FILES:
        (tmp_path / name).mkdir()
        assert run(tmp_path, name, "--from", str(tmp_path), "--out", str(tmp_path / "out")) == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said
        if not get(name).hub:
            assert get(name).by_hand[:40] in said, name
