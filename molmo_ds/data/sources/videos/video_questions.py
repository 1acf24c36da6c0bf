"""Questions that training asks about short videos: TGIF-QA, NewsVideoQA, Social-IQ 2.0, SUTD-TrafficQA, Sports-QA.

All questions about a video are one record. Annotations come from the files of the sets, videos from the user. Source:
allenai/molmo2 at f3cb108, olmo/data/academic_video_datasets.py (TGIF, NewsVideoQA, SocialIQ2, SUTDTrafficQA, SportsQA).
"""

from collections.abc import Iterator
from pathlib import Path

from molmo_ds.data.sources.source import Item, LeftOut, Row, Source
from molmo_ds.data.sources.videos.video_answers import (
    LAYOUT,
    LICENCE,
    TRAIN,
    choice,
    learnt,
    read_cells,
    read_lines,
    read_records,
    short,
)

TGIF_PARTS = ("action", "count", "transition", "frameqa")  # in the reference's order
TGIF_CHOSEN = ("action", "transition")  # whose questions have options
NEWS = "final_data_feb_16"  # folder of the set as it is published
DAMAGED_NEWS = {
    *("389x18", "76x16", "254x17", "254x21"),
    *("389x15", "254x20", "389x17"),
}
SPORTS_FILMS = (".mp4", ".webm")  # the reference reads .avi too, which shards do not hold


def read_tgif(folder: Path, split: str) -> Iterator[Row]:
    """Four tables, whose cells are divided by tabs."""
    for part in TGIF_PARTS:
        for row in read_cells(folder, f"Train_{part}_question.csv", delimiter="\t"):
            yield {**row, "part": part}


def tgif(row: Row, split: str) -> list[Item]:
    """What is done, what comes next (each asked with options and without), how often, and what a frame shows."""
    question = row["question"]
    if row["part"] in TGIF_CHOSEN:
        options = [row[f"a{number}"] for number in range(1, 6)]
        place = int(row["answer"])
        said = [choice(question, options, place), short(question, options[place])]
    else:
        said = [short(question, row["answer"])]
    return learnt(f"videos/{row['gif_name']}.mp4", said, {"video_id": row["gif_name"]})


def read_news(folder: Path, split: str) -> Iterator[Row]:
    """One JSON list."""
    yield from read_records(folder, f"{NEWS}/json_files/raw_files/new_train.json")


def news(row: Row, split: str) -> list[Item]:
    """What is written or said in the news; questions without an answer are left out."""
    clip = row["uni_clipped_id"]
    if clip in DAMAGED_NEWS:
        raise LeftOut("question about a video that allenai/molmo2 found damaged")
    if not row["answer"].strip():
        raise LeftOut("question without an answer")
    said = [short(row["question"], row["answer"])]
    return learnt(f"{NEWS}/videos/train/{clip}.mp4", said, {"video_id": clip})


def social(row: Row, split: str) -> list[Item]:
    """Four options about how people get on with each other."""
    options = [row[f"a{number}"] for number in range(4)]
    if row["answer_idx"] >= len(options):
        raise LeftOut("question whose right option is not there")
    said = [choice(row["q"], options, int(row["answer_idx"]))]
    return learnt(f"video/{row['vid_name']}.mp4", said, {"video_id": row["vid_name"]})


def read_traffic(folder: Path, split: str) -> Iterator[Row]:
    """Lists of cells, a question a line; the first line names the columns."""
    lines = read_lines(folder, "R2_train.jsonl")
    columns = next(lines, [])
    for cells in lines:
        yield dict(zip(columns, cells, strict=True))


def traffic(row: Row, split: str) -> list[Item]:
    """Up to four options about an event on a road; cells that are empty are none."""
    options = [row[f"option{number}"] for number in range(4)]
    right = options[row["answer"]]
    there = [option for option in options if option]
    said = [choice(row["q_body"], there, there.index(right))]
    return learnt(f"compressed_videos/{row['vid_filename']}", said, {"video_id": row["vid_id"]})


def read_sports(folder: Path, split: str) -> Iterator[Row]:
    """A JSON table; `file` is the video that is there, without which a question is not used."""
    found: dict[str, str] = {}
    for row in read_records(folder, "meta-data/train.json"):
        name = row["video"]
        if name not in found:
            names = [name + suffix for suffix in (*SPORTS_FILMS, ".avi")]
            found[name] = next((one for one in names if (folder / one).is_file()), "")
        yield {**row, "file": found[name]}


def sports(row: Row, split: str) -> list[Item]:
    """What players and gymnasts do, in few words."""
    if not row["file"]:
        raise LeftOut("question whose video is not there")
    if row["file"].endswith(".avi"):
        raise LeftOut("question whose video is an AVI file; turn it into an MP4")
    said = [short(row["question"], row["answer"])]
    return learnt(row["file"], said, {"video_id": row["video"]})


SOURCES = [
    Source(
        "tgif",
        LICENCE,
        LAYOUT,
        tgif,
        TRAIN,
        group="gif_name",
        read=read_tgif,
        by_hand="put Train_{action,count,transition,frameqa}_question.csv of the hub's allenai/Molmo2-TGIF into DIR and"
        " the GIFs that https://github.com/YunseokJANG/tgif-qa names, turned into MP4, into DIR/videos",
    ),
    Source(
        "news_video_qa_filtered",
        LICENCE,
        LAYOUT,
        news,
        TRAIN,
        group="uni_clipped_id",
        read=read_news,
        by_hand="put json_files/raw_files/new_train.json of the hub's allenai/Molmo2-NewsVideoQA and the videos of"
        f" https://cvit.iiit.ac.in/research/projects/cvit-projects/videoqa (videos/train/) into DIR/{NEWS}",
    ),
    Source(
        "social_iq2",
        LICENCE,
        LAYOUT,
        social,
        TRAIN,
        "PediaMedAI/Social-IQ-Video",
        group="vid_name",
        by_hand="the hub's rows go into DIR, and into DIR/video the videos that"
        " https://github.com/abwilf/Social-IQ-2.0-Challenge fetches",
    ),
    Source(
        "sutd_trafficqa",
        LICENCE,
        LAYOUT,
        traffic,
        TRAIN,
        group="vid_filename",
        read=read_traffic,
        by_hand="ask for https://zenodo.org/records/7431011 and put R2_train.jsonl and compressed_videos/ into DIR",
    ),
    Source(
        "sportsqa_oe",
        LICENCE,
        LAYOUT,
        sports,
        TRAIN,
        group="video",
        read=read_sports,
        by_hand="unpack https://ndownloader.figshare.com/files/57448480 (meta-data/train.json) into DIR, and there too"
        " the videos of the hub's HopLeeTop/Sports-QA under the names that the rows have, AVI files turned into MP4",
    ),
]
