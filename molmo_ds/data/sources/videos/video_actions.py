"""Short clips whose action is named: Moments in Time, Kinetics 710, EPIC-KITCHENS 100.

Rows and videos are fetched by hand. The question is one of a few sentences of our own, drawn at each visit
(data/wording/actions.py); there it is drawn once a run and clip, without a seed. Layouts: allenai/molmo2 at f3cb108,
olmo/data/academic_video_datasets.py (MomentsInTime, Kinetics710, EpicKitchens with qa_format).
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from molmo_ds.data.sources.source import Item, LeftOut, Picture, Row, Source, annotation
from molmo_ds.data.sources.videos.video_answers import LAYOUT, LICENCE, read_cells
from molmo_ds.data.sources.videos.video_choices import read_table
from molmo_ds.data.sources.videos.video_files import DAMAGED, read_text, seconds

BOTH = {"train": "train", "validation": "validation"}
PUBLISHED = {"train": "training", "validation": "validation"}  # names of Moments in Time
KINETICS = {"train": "train", "validation": "val"}
DAMAGED_CLIPS = {  # of EPIC-KITCHENS
    "P01_102_229.910_234.300.mp4",
    "P01_102_90.240_93.490.mp4",
    "P01_104_65.170_92.450.mp4",
    "P02_118_722.700_723.550.mp4",
}


def read_moments(folder: Path, split: str) -> Iterator[Row]:
    """train.csv of video_path and label, as there, or the publishers' trainingSet.csv, which has no header."""
    table = f"{split}.csv"
    if (folder / table).is_file():
        for row in read_cells(folder, table):
            yield {"place": f"{split}-videos/{row['video_path']}", "label": row["label"]}
        return
    part = PUBLISHED[split]
    with open(folder / f"{part}Set.csv", encoding="utf-8", newline="") as file:
        for path, label, *_ in csv.reader(file):
            yield {"place": f"{part}/{path}", "label": label}


def moment(row: Row, split: str) -> list[Item]:
    """One of 339 verbs; sounds of an adult or a child (`adult+female+singing`) are left out, as there."""
    label = row["label"]
    words = label.replace("+", " ")
    if "+" in label and words.startswith(("child ", "adult ")):
        raise LeftOut("label that says that a child or an adult makes a sound")
    return [_named("moments_in_time_label", words, row["place"])]


def read_kinetics(folder: Path, split: str) -> Iterator[Row]:
    """The lists of Kinetics 710, which name videos of Kinetics 700 and 600 and a number of its labels.

    A video of both has a row in each. The folders of Kinetics 600 have `_` for blanks.
    """
    part = KINETICS[split]
    labels = [*read_text(folder, "kinetics710/k710_label_map.txt")]
    damaged = {row["video"] for row in read_table(folder, "kinetics_corrupt.parquet")}
    for home in ("kinetics700", "kinetics600"):
        listed = f"kinetics710/k{home[-3:]}_{part}_list_videos.txt"
        numbers = {}
        for line in read_text(folder, listed):
            path, number = line.split(" ")[:2]
            numbers[path.rpartition("/")[2]] = int(number)
        for video, number in numbers.items():
            label = labels[number]
            below = label if home == "kinetics700" else label.replace(" ", "_")
            place = f"{home}/{part}/{below}/{video}"
            yield {"place": place, "label": label, "damaged": place in damaged}


def kinetics(row: Row, split: str) -> list[Item]:
    """One of 710 actions."""
    if row["damaged"]:
        raise LeftOut(DAMAGED)
    return [_named("kinetics_label", row["label"], row["place"])]


def read_epic(folder: Path, split: str) -> Iterator[Row]:
    """EPIC_100_train.csv, with the place of each clip as Ai2's script cuts it out of its video."""
    for row in read_cells(folder, f"epic-kitchens-100-annotations/EPIC_100_{split}.csv"):
        begin, end = seconds(row["start_timestamp"]), seconds(row["stop_timestamp"])
        clip = f"{row['video_id']}_{begin:.3f}_{end:.3f}.mp4"
        place = f"epic-kitchens-clips/{row['participant_id']}/videos/{clip}"
        yield {"narration": row["narration"], "clip": clip, "place": place}


def epic(row: Row, split: str) -> list[Item]:
    """What the one who cooks said of it, such as `open door`; the narrations of one clip are one record."""
    if row["clip"] in DAMAGED_CLIPS:
        raise LeftOut(DAMAGED)
    return [_named("epic_kitchens_label", row["narration"], row["place"])]


def _named(style: str, label: str, place: str) -> Item:
    return Item((Picture(path=place),), [annotation(style, answer=label)], {"video_id": place})


SOURCES = [
    Source(
        "moments_in_time_qa",
        LICENCE,
        LAYOUT,
        moment,
        BOTH,
        read=read_moments,
        by_hand="ask for Moments in Time at http://moments.csail.mit.edu and unpack it, so that DIR holds"
        " trainingSet.csv and training/ (or train.csv with columns video_path and label, and train-videos/)",
    ),
    Source(
        "kinetics_qa",
        LICENCE,
        LAYOUT,
        kinetics,
        BOTH,
        read=read_kinetics,
        by_hand="fetch Kinetics 600 and 700 (https://github.com/cvdfoundation/kinetics-dataset) as"
        " DIR/kinetics600/train/LABEL_WITH_UNDERSCORES/VIDEO.mp4 and DIR/kinetics700/train/LABEL/VIDEO.mp4, and put"
        " k710_label_map.txt and the lists k600_train_list_videos.txt, k700_train_list_videos.txt of Kinetics 710 into"
        " DIR/kinetics710 and https://storage.googleapis.com/molmo-datasets/kinetics_corrupt.parquet into DIR",
    ),
    Source(
        "epic_kitchens_qa",
        LICENCE,
        LAYOUT,
        epic,
        BOTH,
        read=read_epic,
        group="place",
        by_hand="fetch EPIC-KITCHENS-100 (https://epic-kitchens.github.io) with its annotations as"
        " DIR/epic-kitchens-100-annotations, and cut each row's clip as"
        " DIR/epic-kitchens-clips/PARTICIPANT/videos/VIDEO_BEGIN_END.mp4 (seconds with three decimals), as"
        " scripts/extract_epic_kitchens_clips.py of allenai/molmo2 does",
    ),
]
