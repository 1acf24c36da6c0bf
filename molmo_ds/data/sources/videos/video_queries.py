"""Questions about videos: IntentQA, RoadTextVQA, Countix, CameraBench, Ego4D and QVHighlights.

Rows and videos are fetched by hand. Layouts: allenai/molmo2 at f3cb108, olmo/data/academic_video_datasets.py (IntentQA,
RoadTextVQA, Countix with answer_format oe, CameraBenchTrain, Ego4dCachedClips, QVHighlights).
"""

from collections.abc import Iterator
from pathlib import Path

from molmo_ds.data.sources.source import (
    Item,
    LeftOut,
    Picture,
    Row,
    Source,
    annotation,
    placed,
    read_json,
)
from molmo_ds.data.sources.videos.video_answers import (
    CHOICE,
    LAYOUT,
    LICENCE,
    TRAIN,
    read_cells,
    read_lines,
    short,
)
from molmo_ds.data.sources.videos.video_choices import clip_of, read_table
from molmo_ds.data.sources.videos.video_files import DAMAGED, one_of

OPTIONS = 5  # of IntentQA
MOST_WINDOWS = 5  # of QVHighlights
PARTS = {"train": "train", "validation": "val", "test": "test"}
WINDOWS = "Which parts of the video show this: {query}? Give begin and end of each in seconds."


def intent_qa(row: Row, split: str) -> list[Item]:
    """Each question twice, free and with its five options in their order; those of a video are one record.

    Cells are text as they are published; the reference's table reader takes `None` and `NA` for empty ones.
    """
    options = [row[f"a{number}"] for number in range(OPTIONS)]
    right = int(row["answer"])
    if right >= OPTIONS:
        raise LeftOut("answer that is none of the options")
    question = row["question"]
    choice = annotation(CHOICE, question=question, options=options, answer_index=right)
    known = {"video_id": row["video_id"], "type": row["type"]}
    video = (Picture(path=f"videos/{row['video_id']}.mp4"),)
    return [Item(video, [short(question, options[right]), choice], known)]


def road_text_vqa(row: Row, split: str) -> list[Item]:
    """A text on or along the road; of several answers each visit takes one (there: each run, without a seed)."""
    if not row["answer"]:
        raise LeftOut("question without an answer")
    said = one_of([short(row["question"], answer) for answer in row["answer"]])
    known = {"video_id": row["video"], "question_id": row["questionId"]}
    return [Item((Picture(path=f"videos/{row['video']}"),), said, known)]


def read_countix(folder: Path, split: str) -> Iterator[Row]:
    """The table of counts, and the questions that Ai2 wrote for each class of Kinetics."""
    questions = read_json(folder, "class_to_question.json")
    for row in read_cells(folder, "countix_train_mapped.csv"):
        yield {**row, "questions": questions[row["class"]]}


def countix(row: Row, split: str) -> list[Item]:
    """How often something is repeated; a visit takes one of a class's questions (there: each run, without a seed)."""
    said = one_of([short(question, row["count"]) for question in row["questions"]])
    known = {"video_id": row["video_path"], "class": row["class"]}
    return [Item((Picture(path=f"kinetics700/{row['video_path']}"),), said, known)]


def camera_bench(row: Row, split: str) -> list[Item]:
    """How the camera moves: questions of one video, which are one record.

    Wrong answers keep their order, and the right one has a place that depends on the question alone; there it is drawn
    once a run, without a seed.
    """
    said = []
    for one in row["mc_qa_list"]:
        options, right = placed(one["Question"], one["Answer"], one["NegativeAnswers"])
        said.append(
            annotation(CHOICE, question=one["Question"], options=options, answer_index=right)
        )
    known = {"video_id": row["video_path"]}
    return [Item((Picture(path=f"train/{row['video_path']}"),), said, known)] if said else []


def read_ego4d(folder: Path, split: str) -> Iterator[Row]:
    """ego4d_cached_train_metadata, as parquet (that is published) or as jsonl (that the reference reads)."""
    name = "ego4d_cached_train_metadata"
    if (folder / f"{name}.jsonl").is_file():
        yield from read_lines(folder, f"{name}.jsonl")
    else:
        yield from read_table(folder, f"{name}.parquet")


def ego4d(row: Row, split: str) -> list[Item]:
    """Moments and questions of Ego4D as Ai2 published them, in clips of at most three minutes with messages of each.

    Questions, times and answers are the file's: what a clip shows, what a part of it shows, when something happens.
    """
    if row.get("corrupt"):
        raise LeftOut(DAMAGED)
    said = [
        annotation(one["style"], **{key: one.get(key) for key in ("question", "answer", "text")})
        for one in row["message_list"]
    ]
    about = clip_of(row.get("metadata") or {}, "clip_start_time", "clip_end_time")
    video = (Picture(path=f"ego4d-clips/{row['clip']}"),)
    return [Item(video, said, {"video_id": row["clip"]}, about)] if said else []


def read_highlights(folder: Path, split: str) -> Iterator[Row]:
    """highlight_train_release.jsonl, a query a line."""
    part = PARTS[split]
    yield from read_lines(folder, f"highlight_{part}_release.jsonl")


def highlights(row: Row, split: str) -> list[Item]:
    """All parts of a video that a query means, in seconds; the sentence around the query is our own."""
    windows = row["relevant_windows"]
    if len(windows) > MOST_WINDOWS:
        raise LeftOut(f"query of more than {MOST_WINDOWS} parts")
    question = WINDOWS.format(query=row["query"].rstrip("."))
    answer = "Segments: " + ", ".join(f"[{begin}-{end}]" for begin, end in windows)
    known = {"example_id": f"{row['qid']}_{row['vid']}", "video_id": row["vid"]}
    return [Item((Picture(path=f"videos/{row['vid']}.mp4"),), [short(question, answer)], known)]


SOURCES = [
    Source(
        "intent_qa",
        LICENCE,
        LAYOUT,
        intent_qa,
        PARTS,
        read=lambda folder, split: read_cells(folder, f"{PARTS[split]}.csv"),
        group="video_id",
        by_hand="put train.csv of https://github.com/JoseponLee/IntentQA (datasets/IntentQA) into DIR and its videos,"
        " which are those of NExT-QA, into DIR/videos",
    ),
    Source(
        "road_text_vqa",
        LICENCE,
        LAYOUT,
        road_text_vqa,
        PARTS,
        read=lambda folder, split: read_json(folder, f"{PARTS[split]}.json")["data"],
        group="video",
        by_hand="put http://cvit.iiit.ac.in/images/datasets/RoadTextVQA/train.json into DIR and the videos of"
        " https://github.com/georg3tom/RoadtextVQA into DIR/videos",
    ),
    Source(
        "countix_oe",
        LICENCE,
        LAYOUT,
        countix,
        TRAIN,
        read=read_countix,
        by_hand="put countix_train_mapped.csv and class_to_question.json of the hub's allenai/Molmo2-Countix into DIR"
        " and the videos of Kinetics 700 that its rows name into DIR/kinetics700/train/LABEL",
    ),
    Source(
        "camerabench_qa",
        LICENCE,
        LAYOUT,
        camera_bench,
        TRAIN,
        read=lambda folder, split: read_table(folder, "camerabench_qa.parquet"),
        by_hand="put camerabench_qa.parquet of the hub's allenai/Molmo2-CameraBenchTrain into DIR and the videos of"
        " https://github.com/sy77777en/CameraBench into DIR/train",
    ),
    Source(
        "ego4d_all",
        LICENCE,
        LAYOUT,
        ego4d,
        TRAIN,
        read=read_ego4d,
        by_hand="put https://storage.googleapis.com/molmo-datasets/ego4d_cached_train_metadata.parquet into DIR, and"
        " cut its columns start to end out of each video of Ego4D (https://ego4d-data.org, with a licence) as"
        " DIR/ego4d-clips/CLIP",
    ),
    Source(
        "qv_highlights",
        LICENCE,
        LAYOUT,
        highlights,
        {"train": "train", "validation": "val"},
        read=read_highlights,
        by_hand="put highlight_train_release.jsonl of https://github.com/jayleicn/moment_detr (data/) into DIR and"
        " unpack https://nlp.cs.unc.edu/data/jielei/qvh/qvhilights_videos.tar.gz there, so that it holds videos/",
    ),
]
