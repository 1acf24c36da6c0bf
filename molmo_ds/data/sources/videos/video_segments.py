"""Parts of videos whose action is named: Charades-STA, COIN, YouCook2, ActivityNet with its questions.

Rows and videos are fetched by hand. A part is a record of its own with a clip of the whole video; annotations of the
same part are one record. The question about an action is one of a few sentences of our own, drawn at each visit
(data/wording/actions.py); there it is drawn once a run and annotation, without a seed. Layouts: allenai/molmo2 at
f3cb108, olmo/data/academic_video_datasets.py (CharadesSTA, COIN, Youcook2, ActivityNet; task all, with qa_format).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from molmo_ds.data.sources.source import Item, LeftOut, Picture, Row, Source, annotation, read_json
from molmo_ds.data.sources.videos.video_answers import LAYOUT, LICENCE, TRAIN, short
from molmo_ds.data.sources.videos.video_choices import read_table
from molmo_ds.data.sources.videos.video_files import first_there, in_any_format, read_text, segment

SPAN = "video_clip_short_caption_start_end"
DAMAGED_PART = "part of a video that Ai2 found damaged"
DAMAGED_OF_YOUCOOK2 = {("UB1_MNpdvgs", 595, 613), ("UB1_MNpdvgs", 624, 635)}
PARTS = {"train": "training", "validation": "validation", "test": "testing"}


def _row(video: str, place: str, begin: Any, end: Any, **known: Any) -> dict[str, Any]:
    """A row whose `part` is its video with begin and end, by which rows become one record."""
    part = f"{place} {begin} {end}"
    return {"video": video, "place": place, "begin": begin, "end": end, "part": part, **known}


def _item(row: Row, said: dict[str, Any], about: dict[str, Any]) -> list[Item]:
    known = {"video_id": row["video"]}
    if "publisher_split" in row:
        known["publisher_split"] = row["publisher_split"]
    return [Item((Picture(path=row["place"]),), [said], known, about)]


def read_charades(folder: Path, split: str) -> Iterator[Row]:
    """charades_sta_train.txt, lines of `VIDEO BEGIN END##SENTENCE`."""
    for line in read_text(folder, "charades_sta_train.txt"):
        place, sentence = line.split("##")
        video, begin, end = place.split(" ")
        film = f"Charades_v1/{video}.mp4"
        yield _row(video, film, float(begin), float(end), label=sentence)


def charades(row: Row, split: str) -> list[Item]:
    """What a person does in a part. The reference names two videos of wrong parts, LEOL6 and AKKWU, but keeps them."""
    said = annotation("charades_sta", answer=row["label"])
    return _item(row, said, segment(row["begin"], row["end"]))


def read_coin(folder: Path, split: str) -> Iterator[Row]:
    """COIN.json, and the parts that Ai2 could not read."""
    damaged = {
        (row["video_id"], row["metadata"]["clip_start_time"], row["metadata"]["clip_end_time"])
        for row in read_table(folder, "coin_corrupt.parquet")
    }
    for video, known in read_json(folder, "COIN.json")["database"].items():
        if split not in known["subset"]:
            continue
        place = in_any_format(folder, f"videos/{video}")
        for one in known["annotation"]:
            begin, end = one.get("segment") or (None, None)
            bad = (video, begin, end) in damaged
            yield _row(video, place, begin, end, label=one["label"], damaged=bad)


def coin(row: Row, split: str) -> list[Item]:
    """A step of a task, such as `put on the wheel`."""
    about = segment(row["begin"], row["end"])
    if row["damaged"]:
        raise LeftOut(DAMAGED_PART)
    return _item(row, annotation("coin_label", answer=row["label"]), about)


def read_youcook2(folder: Path, split: str) -> Iterator[Row]:
    """youcookii_annotations_trainval.json: each sentence twice, of its part and of the whole video."""
    known = read_json(folder, "youcookii_annotations_trainval.json")["database"]
    for video, about in known.items():
        if PARTS[split] != about["subset"]:
            continue
        place = in_any_format(folder, f"videos/{video}")
        for one in about["annotations"]:
            begin, end = one.get("segment") or (None, None)
            sentence = one["sentence"]
            sentence = sentence if sentence.endswith(".") else f"{sentence}."
            yield _row(video, place, begin, end, label=sentence, whole=False)
            yield _row(video, place, begin, end, label=sentence, whole=True) | {"part": place}


def youcook2(row: Row, split: str) -> list[Item]:
    """A step of a recipe, in its part or in the whole video.

    In the whole video the reference has no sentence for its style, so that a prompt is the style alone and does not say
    which part is meant; here too.
    """
    about = segment(row["begin"], row["end"])
    if row["whole"]:
        return _item(row, annotation(SPAN, text=row["label"]), {})
    if (row["video"], row["begin"], row["end"]) in DAMAGED_OF_YOUCOOK2:
        raise LeftOut(DAMAGED_PART)
    return _item(row, annotation("youcook2_label", answer=row["label"]), about)


def read_activitynet(folder: Path, split: str) -> Iterator[Row]:
    """activity_net.v1-3.min.json, then ActivityNet-QA's train_q.json with the answers of train_a.json.

    The reference takes labels of every part of the set, its validation too; they are here as well, counted in the
    report. A label that its part has already is counted as such; there it is a second message where another sentence
    was drawn for it.
    """
    seen = set()
    for video, known in read_json(folder, "activity_net.v1-3.min.json")["database"].items():
        place = _of_activitynet(folder, video)
        for one in known["annotations"]:
            begin, end = one["segment"]
            row = _row(video, place, begin, end, label=one["label"])
            name = (row["part"], one["label"])
            yield row | {"again": name in seen, "publisher_split": known["subset"]}
            seen.add(name)
    answers: dict[str, list[str]] = {}
    for one in read_json(folder, f"{split}_a.json"):
        answers.setdefault(one["question_id"], []).append(one["answer"])
    for one in read_json(folder, f"{split}_q.json"):
        video = one["video_name"]
        place = _of_activitynet(folder, video)
        for answer in answers.get(one["question_id"], ()):
            row = _row(video, place, None, None, question=one["question"], answer=answer)
            yield row


def _of_activitynet(folder: Path, video: str) -> str:
    home = "all-videos"
    return first_there(folder, [f"{home}/{video}/{video}.mp4", f"{home}/{video}.mp4"])


def activitynet(row: Row, split: str) -> list[Item]:
    """An activity of a part, or a question about the whole video, which ends with a question mark."""
    if "question" in row:
        question = row["question"]
        question = question if question.endswith("?") else question.strip() + "?"
        return _item(row, short(question, row["answer"]), {})
    about = segment(row["begin"], row["end"])
    if row["again"]:
        raise LeftOut("label that its part of the video has already")
    return _item(row, annotation("activitynet_label", answer=row["label"]), about)


SOURCES = [
    Source(
        "charades_sta_all_qa",
        LICENCE,
        LAYOUT,
        charades,
        TRAIN,
        read=read_charades,
        group="part",
        by_hand="put charades_sta_train.txt (https://github.com/jiyanggao/TALL) into DIR and the videos of Charades"
        " (https://prior.allenai.org/projects/charades) into DIR/Charades_v1",
    ),
    Source(
        "coin_all_qa",
        LICENCE,
        LAYOUT,
        coin,
        {"train": "train", "test": "test"},
        read=read_coin,
        group="part",
        by_hand="put COIN.json of https://github.com/coin-dataset/annotations and"
        " https://storage.googleapis.com/molmo-datasets/coin_corrupt.parquet into DIR and each video as"
        " DIR/videos/VIDEO.mp4 (or .mkv, .webm)",
    ),
    Source(
        "youcook2_all_qa",
        LICENCE,
        LAYOUT,
        youcook2,
        {"train": "train", "validation": "validation"},
        read=read_youcook2,
        group="part",
        by_hand="put youcookii_annotations_trainval.json of http://youcook2.eecs.umich.edu/download into DIR and each"
        " video as DIR/videos/VIDEO.mp4 (or .mkv, .webm)",
    ),
    Source(
        "activitynet_all_qa",
        LICENCE,
        LAYOUT,
        activitynet,
        TRAIN,
        read=read_activitynet,
        group="part",
        by_hand="put activity_net.v1-3.min.json of http://activity-net.org/download.html and train_q.json, train_a.json"
        " of https://github.com/MILVLG/activitynet-qa (dataset/) into DIR and each video as DIR/all-videos/VIDEO.mp4",
    ),
]
