"""Questions that training asks about what follows from what in a video: CLEVRER, STAR, FunQA.

All questions about a video, or about a part of one, are one record; of a part of STAR's videos ten at most. Source:
allenai/molmo2 at f3cb108, olmo/data/academic_video_datasets.py (CLEVRER, STAR, FunQA).
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from molmo_ds.data.sources.source import Cut, Item, LeftOut, Row, Source, read_json
from molmo_ds.data.sources.videos.video_answers import (
    LAYOUT,
    LICENCE,
    TRAIN,
    WHY,
    choice,
    learnt,
    read_records,
    refuse,
    short,
)

CLEVRER_FOLDER = 1000  # videos of a folder
STAR_ASKED = 10  # annotations of a record
FUN_LEFT_OUT = ("H1", "C1", "M1", "C4", "C5")  # tasks: when it happens, a title, a score
FUN_KINDS = {"H": "humor", "C": "creative", "M": "magic"}  # first letter of a task, of a video


def read_clevrer(folder: Path, split: str) -> Iterator[Row]:
    """One JSON list of videos, each with its questions."""
    for video in read_json(folder, "train.json"):
        name = video["video_filename"]
        number = int(name.split(".")[0].removeprefix("video_"))
        first = number // CLEVRER_FOLDER * CLEVRER_FOLDER
        home = f"video_{first:05d}-{first + CLEVRER_FOLDER:05d}"
        for asked in video["questions"]:
            yield {**asked, "video": f"{home}/{name}"}


def clevrer(row: Row, split: str) -> list[Item]:
    """What is there and happens, in a word; why it does and would, with options of which one alone may be right."""
    known = {"video_id": Path(row["video"]).stem}
    if "answer" in row:
        return learnt(row["video"], [short(row["question"], row["answer"])], known)
    if "choices" not in row:
        raise LeftOut("question without an answer")
    right = [i for i, one in enumerate(row["choices"]) if one["answer"] == "correct"]
    if len(right) != 1:
        raise LeftOut("question with several right options, or none")
    options = [one["choice"] for one in row["choices"]]
    return learnt(row["video"], [choice(row["question"], options, right[0])], known)


def read_star(folder: Path, split: str) -> Iterator[Row]:
    """One JSON list; each question comes twice, without its options and with them."""
    wanted = ("video_id", "question", "answer", "choices")
    for asked in read_records(folder, "STAR_train.json"):
        begin = float(asked["start"])
        end = float(asked["end"])
        row = {name: asked[name] for name in wanted} | {"clip": [begin, end]}
        row["shown"] = f"{row['video_id']}_{begin}_{end}"
        yield {**row, "chosen": False}
        yield {**row, "chosen": True}


def star(row: Row, split: str) -> list[Item]:
    """A question about a part of a video of Charades; of equal options the last one counts as the answer."""
    said = short(row["question"], row["answer"])
    if row["chosen"]:
        options = [one["choice"] for one in row["choices"]]
        right = [place for place, option in enumerate(options) if option == row["answer"]]
        if not right:
            raise LeftOut("question none of whose options is its answer")
        said = choice(row["question"], options, right[-1])
    video = f"Charades_v1/{row['video_id']}.mp4"
    return learnt(video, [said], {"video_id": row["video_id"]}, {"clip": row["clip"]})


def read_funqa(folder: Path, split: str) -> Iterator[Row]:
    """Free questions, then choices of all splits, of which those are used whose video is in the folder of this one."""
    for row in read_records(folder, "FunQA_train.json"):
        yield _placed(folder, row, row["task"][:1], row["task"] in FUN_LEFT_OUT)
    for row in read_records(folder, "Funqa_mcqa_v1.json"):
        yield _placed(folder, row, row["visual_input"][:1], False)


def _placed(folder: Path, row: Row, letter: str, unwanted: bool) -> Row:
    """A row of FunQA with its video, or with why it is not used."""
    kind = FUN_KINDS.get(letter, "")
    video = f"train/train_{kind}/{row['visual_input']}"
    why = ""
    if unwanted:
        why = "question of a task that allenai/molmo2 leaves out"
    elif not kind:
        why = "question about a kind of video that is not known"
    elif not (folder / video).is_file():
        why = "question whose video is not there, or in another split"
    return {**row, "video": video, WHY: why}


def funqa(row: Row, split: str) -> list[Item]:
    """What is funny, creative or magic, explained; choices stand in the last two lines of an instruction."""
    refuse(row)
    known = {"video_id": row["visual_input"]}
    if "gt" not in row:
        return learnt(row["video"], [short(row["instruction"], row["output"])], known)
    *_, asked, listed = row["instruction"].split("\n")
    question = asked.replace("The Question is:", "").strip()
    options = [
        option.replace(f"Options {number}: ", "").strip()
        for number, option in enumerate(
            ast.literal_eval(listed.replace(" The Options are: ", "").strip()), 1
        )
    ]
    right = _whole(row["gt"])
    if not 1 <= right <= len(options):
        raise LeftOut("question whose right option is not there")
    return learnt(row["video"], [choice(question, options, right - 1)], known)


def _whole(value: object) -> int:
    """A number from 1, or 0 for what is none."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


SOURCES = [
    Source(
        "clevrer",
        LICENCE,
        LAYOUT,
        clevrer,
        TRAIN,
        group="video",
        read=read_clevrer,
        by_hand="put http://data.csail.mit.edu/clevrer/questions/train.json into DIR and unpack"
        " http://data.csail.mit.edu/clevrer/videos/train/video_train.zip there",
    ),
    Source(
        "funqa",
        LICENCE,
        LAYOUT,
        funqa,
        TRAIN,
        group="video",
        read=read_funqa,
        by_hand="put FunQA_train.json and Funqa_mcqa_v1.json of the hub's fesvhtr/FunQA into DIR and unpack its"
        " train.zip there",
    ),
    Source(
        "star",
        LICENCE,
        LAYOUT,
        star,
        TRAIN,
        group="shown",
        read=read_star,
        by_hand="put https://star-benchmark.s3.us-east.cloud-object-storage.appdomain.cloud/Question_Answer_SituationGraph/STAR_train.json"
        " into DIR and the videos of"
        " https://prior.allenai.org/projects/charades into DIR/Charades_v1",
        cut=Cut(annotations=STAR_ASKED),
    ),
]
