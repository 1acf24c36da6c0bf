"""Questions that training asks about what is seen and said in shows and films: TVQA and CinePile, with their subtitles.

Source: allenai/molmo2 at f3cb108, olmo/data/academic_video_datasets.py (TVQA and CinepileHf, both with subtitles). TVQA
is published as three pictures a second of every clip. The reference encodes those of a question as H.264, with black
edges up to a multiple of 16 pixels; here they become a video of the same times that holds the very JPEG files
(`frames`).
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from molmo_ds.data.decode import BadSample
from molmo_ds.data.sources.source import Item, Row, Source
from molmo_ds.data.sources.videos.frames import joined
from molmo_ds.data.sources.videos.video_answers import (
    CHOICE,
    CHOICE_OF_SPOKEN,
    LAYOUT,
    LICENCE,
    TRAIN,
    WHY,
    choice,
    learnt,
    read_lines,
    refuse,
)
from molmo_ds.data.sources.videos.video_files import read_text

RATE = 3  # pictures of TVQA a second
SHOWS = {  # of TVQA: name -> folder of its pictures
    "Grey's Anatomy": "grey_frames",
    "How I Met You Mother": "met_frames",
    "The Big Bang Theory": "bbt_frames",
    "House M.D.": "house_frames",
    "Castle": "castle_frames",
    "Friends": "friends_frames",
}
FRAMES = "video-frames/frames_hq"
DAMAGED = {  # clip and its first and last picture
    ("grey_s03e15_seg02_clip_05", 1, 51),
    ("castle_s08e08_seg02_clip_14", 1, 19),
}
Line = list[Any]  # [begin, end, text]


def read_tvqa(folder: Path, split: str) -> Iterator[Row]:
    """A row for each part of a clip with all questions about its pictures, and one for each question that is not used.

    Subtitles are those of the part's last question that has any, as in the reference.
    """
    said = {
        one["vid_name"]: one["sub"]
        for one in read_lines(folder, "tvqa_preprocessed_subtitles.jsonl")
    }
    listed = "missing_clips.txt"
    missing = set(read_text(folder, listed)) if (folder / listed).is_file() else set()
    parts: dict[tuple[str, int, int], dict[str, Any]] = {}
    for asked in read_lines(folder, "tvqa_train.jsonl"):
        begin, end = (float(time) for time in asked["ts"].split("-"))
        if math.isnan(begin) or math.isnan(end):
            yield {WHY: "question without times"}
            continue
        if asked["show_name"] not in SHOWS:
            yield {WHY: "question about a show whose folder is not known"}
            continue
        home = f"{SHOWS[asked['show_name']]}/{asked['vid_name']}"
        first = int(begin * RATE) + 1
        last = int(end * RATE)
        if (asked["vid_name"], first, last) in DAMAGED:
            yield {WHY: "question about a clip that allenai/molmo2 found damaged"}
            continue
        if f"{home}:{asked['ts']}" in missing:
            yield {WHY: "question that missing_clips.txt names"}
            continue
        if not any(path.is_file() for path in _frames(folder, home, first, last)):
            yield {WHY: "question without a picture"}
            continue
        lines = spoken(said.get(asked["vid_name"]), begin, end)
        part = parts.setdefault((home, first, last), {"asked": [], "subtitles": []})
        part["asked"].append(_choice(asked, bool(lines)))
        part["subtitles"] = lines or part["subtitles"]
        part |= {"show_name": asked["show_name"], "ts": asked["ts"], "clip_name": asked["vid_name"]}
    for (home, first, last), part in parts.items():
        there = [path for path in _frames(folder, home, first, last) if path.is_file()]
        try:
            video = joined(there, RATE)
        except BadSample:
            yield {WHY: "part of a clip whose first picture cannot be read"}
            continue
        yield {**part, "video": video}


def _frames(folder: Path, home: str, first: int, last: int) -> Iterator[Path]:
    """Where the pictures of a part of a clip should be."""
    return (folder / FRAMES / home / f"{number:05d}.jpg" for number in range(first, last + 1))


def _choice(asked: Row, with_lines: bool) -> dict[str, Any]:
    options = [asked[f"a{number}"] for number in range(5)]
    style = CHOICE_OF_SPOKEN if with_lines else CHOICE
    return choice(asked["q"], options, int(asked["answer_idx"]), style)


def spoken(lines: Any, begin: float, end: float) -> list[Line]:
    """What is said in a part of a clip, in seconds from its begin, before which a line may begin.

    Of lines at the very same times the last is used; lines without times or a text say nothing.
    """
    found: dict[tuple[float, float], str] = {}
    for line in lines if isinstance(lines, list) else []:
        try:
            first = float(line["start"])
            last = float(line["end"])
            text = line["text"]
        except (KeyError, TypeError, ValueError):
            continue
        if last > begin and first < end:
            found[first - begin, last - begin] = text
    return [[*times, text] for times, text in found.items()]


def tvqa(row: Row, split: str) -> list[Item]:
    """Five options about a part of a clip."""
    refuse(row)
    known = {"video_id": row["clip_name"], "show_name": row["show_name"], "ts": row["ts"]}
    about = {"subtitles": row["subtitles"]} if row["subtitles"] else {}
    return learnt(row["video"], row["asked"], known, about)


def cinepile(row: Row, split: str) -> list[Item]:
    """Questions about a scene of a film, with what is said in it as one text."""
    said = row.get("subtitles") or ""
    style = CHOICE_OF_SPOKEN if said else CHOICE
    asked = [
        choice(one["question"], one["choices"], one["answer_key_position"], style)
        for one in row["examples"]
    ]
    text = said.replace("<subtitle> ", "").strip()
    known = {"video_id": row["video_id"], "movie_name": row["movie_name"]}
    about = {"subtitles": text} if text else {}
    return learnt(f"videos/{row['video_id']}/{row['video_id']}.mp4", asked, known, about)


SOURCES = [
    Source(
        "tvqa_with_sub",
        LICENCE,
        LAYOUT,
        tvqa,
        TRAIN,
        read=read_tvqa,
        by_hand="put tvqa_train.jsonl, tvqa_preprocessed_subtitles.jsonl and missing_clips.txt of the hub's"
        " allenai/Molmo2-TVQA into DIR and unpack the frames of https://nlp.cs.unc.edu/data/jielei/tvqa"
        f" into DIR/{FRAMES}",
    ),
    Source(
        "cinepile_with_sub",
        LICENCE,
        LAYOUT,
        cinepile,
        TRAIN,
        "allenai/Molmo2-cinepile",
        by_hand="the hub's rows go into DIR, YouTube's videos into DIR/videos/VIDEO_ID/VIDEO_ID.mp4",
    ),
]
