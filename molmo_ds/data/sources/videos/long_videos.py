"""Questions about long videos: Video-MME, MLVU, LongVideoBench, LVBench, VideoEval-Pro.

All are for evaluation and fetched by hand; MLVU and LongVideoBench ask for an agreement, LVBench's videos are fetched
one by one. Layouts: the loaders of allenai/molmo2 at f3cb108, olmo/data/academic_video_datasets.py.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from molmo_ds.data.sources.source import Item, Picture, Row, Source, annotation, read_json
from molmo_ds.data.sources.videos.video_answers import LAYOUT, LICENCE, read_lines
from molmo_ds.data.sources.videos.video_choices import (
    DIRECTLY,
    ONLY_LETTER,
    choice,
    lettered,
    read_table,
)
from molmo_ds.data.sources.videos.video_files import seconds

VIDEO_MME = (
    "Select the best answer to the following multiple-choice question based on the video."
    " Respond with only the letter (A, B, C, or D) of the correct option."
)
MLVU = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
_LETTER = re.compile(r"^(?:\([A-Z]\)|[A-Z]\)(?= )|[A-Z]\.)\s*")  # before an option
MLVU_FREE = ("sub_scene", "summary")


def read_video_mme(folder: Path, split: str, spoken: bool) -> Iterator[Row]:
    """The hub's table, with the subtitles of subtitles.json where they are wanted."""
    said = read_json(folder, "subtitles.json") if spoken else {}
    for row in read_table(folder, "videomme/test-00000-of-00001.parquet"):
        yield {**row, "subtitles": said.get(row["videoID"])}


def video_mme(row: Row, split: str) -> list[Item]:
    """Four options, which have their letters already."""
    options = list(row["options"])
    known = {"example_id": row["question_id"], "video_id": row["videoID"]}
    known |= {key: row[key] for key in ("duration", "domain", "sub_category", "task_type")}
    lines = [VIDEO_MME, row["question"], *options, "The best answer is:"]
    about = {}
    if row.get("subtitles"):
        said = row["subtitles"].values()
        about["subtitles"] = [[one["start"], one["end"], one["text"]] for one in said]
    return choice(f"data/{row['videoID']}.mp4", lines, options, row["answer"], known, about)


def read_mlvu(folder: Path, split: str, kinds: tuple[str, ...]) -> Iterator[Row]:
    """json/NUMBER_KIND.json and video/NUMBER_KIND; of the test split one file."""
    if split == "test":
        for row in read_json(folder, "test-ground-truth/test_mcq_gt.json"):
            yield {**row, "place": f"video/{row['video']}", "kind": row.get("question_type", "")}
        return
    for number, kind in enumerate((*MLVU, *MLVU_FREE), start=1):
        if kind in kinds:
            for place, row in enumerate(read_json(folder, f"json/{number}_{kind}.json")):
                where = f"video/{number}_{kind}/{row['video']}"
                yield {**row, "question_id": f"{kind}_{place}", "place": where, "kind": kind}


def mlvu_choice(row: Row, split: str) -> list[Item]:
    """Seven kinds of questions with options."""
    options = list(row["candidates"])
    lines = [row["question"], *lettered(options), DIRECTLY]
    right = options.index(row["answer"])
    return choice(row["place"], lines, options, right, _about_mlvu(row))


def mlvu_free(row: Row, split: str) -> list[Item]:
    """Scenes and summaries, which a judge compares with a text."""
    asked = annotation("demo", question=row["question"], answer=row["answer"])
    known = _about_mlvu(row) | {"answer": row["answer"], "question": row["question"]}
    points = row.get("scoring_points")
    if points:  # a text, so that it reaches the predictions and with them the judge
        known["scoring_points"] = points if isinstance(points, str) else "\n".join(points)
    return [Item((Picture(path=row["place"]),), [asked], known)]


def _about_mlvu(row: Row) -> dict[str, Any]:
    known = {"example_id": str(row["question_id"]), "video_id": row["video"]}
    return known | {"task_type": row["kind"], "duration": row["duration"]}


def read_long_video_bench(folder: Path, split: str, spoken: bool) -> Iterator[Row]:
    """One JSON a split; subtitles lie in a file for each video."""
    name = "lvb_val.json" if split == "validation" else "lvb_test_wo_gt.json"
    for row in read_json(folder, name):
        said = read_json(folder, f"subtitles/{row['subtitle_path']}") if spoken else None
        yield {**row, "subtitles": said}


def long_video_bench(row: Row, split: str) -> list[Item]:
    """Two to five options; videos of four lengths."""
    options = list(row["candidates"])
    lines = [row["question"], *lettered(options), DIRECTLY]
    known = {"example_id": row["id"], "video_id": row["video_id"], "level": row.get("level")}
    known |= {"question_category": row["question_category"]}
    known["duration_group"] = row["duration_group"]
    known["asks_of_subtitles"] = "subtitle" in "\n".join(lines)
    about = {} if row.get("subtitles") is None else {"subtitles": _spoken(row)}
    right = row.get("correct_choice")
    return choice(f"videos/{row['video_path']}", lines, options, right, known, about)


def _spoken(row: Row) -> list[list[Any]]:
    """Subtitles within the video, whose own clock begins later than theirs."""
    first = row["starting_timestamp_for_subtitles"]
    lines = []
    for one in row["subtitles"]:
        if "timestamp" in one:
            begin, end = one["timestamp"]
            end = end if isinstance(end, float) else row["duration"]
            text = one["text"]
        else:
            begin, end = seconds(one["start"]), seconds(one["end"])
            text = one["line"]
        if end >= first and begin <= first + row["duration"]:
            lines.append([max(0.0, begin - first), end - first, text])
    return lines


def read_lvbench(folder: Path, split: str) -> Iterator[Row]:
    """video_info.meta.jsonl, a video a line with its questions."""
    for video in read_lines(folder, "video_info.meta.jsonl"):
        for asked in video["qa"]:
            yield {**asked, "key": video["key"], "type": video["type"]}


def lvbench(row: Row, split: str) -> list[Item]:
    """The options stand below the question as (A), (B), ..., some without a letter."""
    first, *shown = [line.strip() for line in row["question"].split("\n") if line.strip()]
    options = [_LETTER.sub("", line) for line in shown]
    known = {"example_id": str(row["uid"]), "video_id": row["key"], "type": row["type"]}
    known["question_types"] = list(row["question_type"])
    lines = [first, *lettered(options), ONLY_LETTER]
    return choice(f"{row['key']}.mp4", lines, options, row["answer"], known)


def read_video_eval_pro(folder: Path, split: str) -> Iterator[Row]:
    """The hub's table, whose rows have no ids."""
    for number, row in enumerate(read_table(folder, "data/test-00000-of-00001.parquet")):
        yield {**row, "number": number}


def video_eval_pro(row: Row, split: str) -> list[Item]:
    """Options with their letters; the questions were made to be answered freely, which a judge would score."""
    options = list(row["options"])
    known = {"example_id": f"{row['number']}_{row['video']}", "video_id": row["video"]}
    known |= {key: row[key] for key in ("source", "qa_type", "qa_subtype", "answer_text")}
    lines = [row["question"], *options, ONLY_LETTER]
    return choice(f"videos_filtered/{row['video']}", lines, options, row["answer"], known)


_VALIDATION = {"validation": "validation"}
_TEST = {"test": "test"}
_HUB_MME = (
    "download the hub's lmms-lab/Video-MME into DIR and unpack its zips there, with subtitles.json of"
    " allenai/Molmo2-VideoMME for subtitles"
)
_HUB_MLVU = (
    "agree to the terms of the hub's MLVU/MVLU and MLVU/MLVU_Test; DIR is the folder MLVU of the first, or for the test"
    " split the second with its videos unpacked into DIR/video"
)
_HUB_LONG = (
    "agree to the terms of the hub's longvideobench/LongVideoBench, download it into DIR and unpack its videos and"
    " subtitles"
)

SOURCES = [
    *(
        Source(
            name,
            LICENCE,
            LAYOUT,
            video_mme,
            _VALIDATION,
            read=functools.partial(read_video_mme, spoken=spoken),
            by_hand=_HUB_MME,
        )
        for name, spoken in (("video_mme", False), ("video_mme_w_subtitle", True))
    ),
    Source(
        "mlvu_mc",
        LICENCE,
        LAYOUT,
        mlvu_choice,
        _VALIDATION | _TEST,
        read=functools.partial(read_mlvu, kinds=MLVU),
        by_hand=_HUB_MLVU,
    ),
    Source(
        "mlvu_gen",
        LICENCE,
        LAYOUT,
        mlvu_free,
        _VALIDATION,
        read=functools.partial(read_mlvu, kinds=MLVU_FREE),
        by_hand=_HUB_MLVU,
    ),
    *(
        Source(
            name,
            LICENCE,
            LAYOUT,
            long_video_bench,
            _VALIDATION | _TEST,
            read=functools.partial(read_long_video_bench, spoken=spoken),
            by_hand=_HUB_LONG,
        )
        for name, spoken in (("long_video_bench", False), ("long_video_bench_w_subtitle", True))
    ),
    Source(
        "lvbench",
        LICENCE,
        LAYOUT,
        lvbench,
        _TEST,
        read=read_lvbench,
        by_hand="put video_info.meta.jsonl of the hub's zai-org/LVBench into DIR and each video as DIR/KEY.mp4",
    ),
    Source(
        "video_eval_pro_mc",
        LICENCE,
        LAYOUT,
        video_eval_pro,
        _TEST,
        read=read_video_eval_pro,
        by_hand="download the hub's TIGER-Lab/VideoEval-Pro into DIR and unpack its videos into DIR/videos_filtered",
    ),
]
