"""What people said of videos: Video Localized Narratives as questions and by actor, MotionBench's captions of motion.

Rows and videos are fetched by hand. Layouts: allenai/molmo2 at f3cb108, olmo/data/academic_video_datasets.py
(VideoLocalizedNarratives, VideoLocalizedNarrativesCaptionHf, MotionBenchCaption).
"""

from collections.abc import Iterator
from pathlib import Path

from molmo_ds.data.sources.source import Item, Picture, Row, Source, annotation, read_json
from molmo_ds.data.sources.videos.video_answers import LAYOUT, LICENCE, TRAIN, read_lines, short
from molmo_ds.data.sources.videos.video_files import first_there

PARTS = {"train": "train", "validation": "val"}
MOTION = "MotionBenchCaption-train"


def read_narratives(folder: Path, split: str) -> Iterator[Row]:
    """qa_text_output.json of Oops: a video with its questions a row. Its videos may lie in a folder of their part."""
    part = PARTS[split]
    home = "oops/oops_video"
    told = read_json(folder, f"videoqa/text_output/oops_{part}/qa_text_output.json")
    for row in told["annotations"]:
        name = f"{row['video_name']}.mp4"
        yield {**row, "place": first_there(folder, [f"{home}/{name}", f"{home}/{part}/{name}"])}


def narratives(row: Row, split: str) -> list[Item]:
    """Questions that were made of what people told of a video, which are one record."""
    said = [short(one["raw_question"], one["raw_answer"]) for one in row["qa_pairs"]]
    known = {"video_id": row["video_name"]}
    return [Item((Picture(path=row["place"]),), said, known)] if said else []


def read_narrated(folder: Path, split: str) -> Iterator[Row]:
    """hf_dataset, a data set that was saved to disk, as the hub has it."""
    import datasets

    place = folder / "hf_dataset"
    if not place.is_dir():
        raise FileNotFoundError(None, None, str(place))
    yield from datasets.load_from_disk(str(place))


def narrated(row: Row, split: str) -> list[Item]:
    """A caption of each actor of a video, which are one record; `label` is the actor's name in small letters."""
    said = [
        annotation("video_object_caption", label=actor.lower(), text=caption)
        for caption, actor in zip(row["captions"], row["actor_names"])
    ]
    known = {"id": row["id"], "video_id": row["video"]}
    return [Item((Picture(path=row["video"]),), said, known)] if said else []


def read_motion(folder: Path, split: str) -> Iterator[Row]:
    """train.jsonl of MotionBench's training set."""
    yield from read_lines(folder, f"{MOTION}/train.jsonl")


def motion(row: Row, split: str) -> list[Item]:
    """A caption of how things and the camera move."""
    said = annotation("video_motion_caption", text=row["motion_caption"])
    place = f"{MOTION}/videos/{row['video_path']}"
    return [Item((Picture(path=place),), [said], {"video_id": row["video_path"]})]


SOURCES = [
    Source(
        "video_localized_narratives",
        LICENCE,
        LAYOUT,
        narratives,
        PARTS,
        read=read_narratives,
        by_hand="unpack https://storage.googleapis.com/video-localized-narratives/videoqa.zip into DIR and the videos"
        " of Oops (https://oops.cs.columbia.edu/data) into DIR/oops/oops_video",
    ),
    Source(
        "video_localized_narratives_caption",
        LICENCE,
        LAYOUT,
        narrated,
        TRAIN,
        read=read_narrated,
        by_hand="download hf_dataset/ of the hub's allenai/Molmo2-VideoLocalizedNarrativesCaptionHf into DIR and put"
        " the videos of Oops, Kinetics 700, UVO and OVIS (as mp4) at the paths that its rows name, such as"
        " DIR/oops/oops_video/train, DIR/kinetics/kinetics700/train, DIR/UVO/uvo_videos_sparse,"
        " DIR/UVO/uvo_videos_dense, DIR/OVIS/train_mp4_5fps",
    ),
    Source(
        "motionbench_train",
        LICENCE,
        LAYOUT,
        motion,
        TRAIN,
        read=read_motion,
        aliases=("motionbench_caption",),
        by_hand=f"download {MOTION}/ of the hub's zai-org/MotionBench into DIR and unpack its videos into"
        f" DIR/{MOTION}/videos",
    ),
]
