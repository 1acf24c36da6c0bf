"""Questions that training asks about actions in clips: Paxion (Something-Something V2 and Ego4D) and How2QA.

Source: allenai/molmo2 at f3cb108, olmo/data/academic_video_datasets.py (Paxion, How2QA). Paxion's options come in the
order that the reference draws with its seed; its question is one of three sentences of our own, in whose places the
reference, drawing the same, has others. How2QA's right option stands at a place that depends on the question alone;
there it is drawn without a seed.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from random import Random

from molmo_ds.data.sources.source import Item, LeftOut, Row, Source, placed
from molmo_ds.data.sources.videos.video_answers import (
    LAYOUT,
    LICENCE,
    TRAIN,
    WHY,
    choice,
    learnt,
    read_cells,
    read_lines,
    read_records,
    refuse,
)

QUESTIONS = (  # of Paxion: in the places of the reference's three
    "Which action can be seen here?",
    "What does the person in this video do?",
    "Which of these sentences is true of what happens in the video?",
)
UNSURE = "Not sure"  # Paxion's third option
SEED = 42
DAMAGED_EGO4D = {"703d550a-0a84-4bcf-9b45-e25c864ade70"}
DAMAGED_CLIPS = {"1348c9f9-fc8b-40c7-b1ab-5b6281e5d390_978.617_979.098.mp4"}
DAMAGED_HOW_TO = {"Z1NEMNKgR9U"}
DAMAGED_HOW_TO_CLIPS = {"onGTfd-EKrs_89.15_89.44.mp4", "bkl7eK8B6ig_147.73_149.83.mp4"}
HOW_TO_COLUMNS = ("video_id", "times", "wrong0", "wrong1", "wrong2", "question", "answer")


def read_paxion(folder: Path, split: str) -> Iterator[Row]:
    """Something-Something's questions, then Ego4D's; rows that are not used draw nothing, as in the reference."""
    draws = Random(SEED)
    for row in read_records(folder, "ssv2/antonyms/train_with_rel_path.json"):
        video = f"sth-sth-v2/videos/{row['rel_vid_path']}"
        texts = (row["label"], row["label_action_antonym_clip_text"])
        yield {"video": video, "clip": None, "shown": video, **_drawn(draws, *texts)}
    split_folder = "ego4d/egoclip_subset_action_antonyms_train_val_test_split"
    for row in read_lines(folder, f"{split_folder}/train.jsonl"):
        begin = row["clip_start"]
        end = row["clip_end"]
        name = f"{row['video_uid']}_{float(begin):.3f}_{float(end):.3f}.mp4"
        if begin >= end:
            yield {WHY: "clip without a length", "shown": ""}
            continue
        if row["video_uid"] in DAMAGED_EGO4D or name in DAMAGED_CLIPS:
            yield {WHY: "question about a video that allenai/molmo2 found damaged", "shown": ""}
            continue
        video = f"paxion-ego4d-clips/{name}"
        clip = None
        if not (folder / video).is_file():
            video = f"Ego4d/ego4d_data/v2/full_scale/{row['video_uid']}.mp4"
            clip = [float(begin), float(end)]
        texts = (cleaned(row["clip_text"]), cleaned(row["action_antonym_clip_text"]))
        yield {"video": video, "clip": clip, "shown": f"{video} {clip}", **_drawn(draws, *texts)}


def _drawn(draws: Random, right: str, wrong: str) -> Row:
    question = draws.choice(QUESTIONS)
    options = [right, wrong, UNSURE]
    options = draws.sample(options, len(options))
    return {"question": question, "options": options, "answer": options.index(right)}


def cleaned(label: str) -> str:
    """What Ego4D says of an action, without its `#C` and with a capital letter."""
    if label.startswith("#") and len(label) > 1 and not label[1].isspace():
        label = label[2:].lstrip()
    return label[:1].upper() + label[1:]


def paxion(row: Row, split: str) -> list[Item]:
    """What is done, or its opposite."""
    refuse(row)
    said = [choice(row["question"], row["options"], row["answer"])]
    about = {"clip": row["clip"]} if row["clip"] else {}
    return learnt(row["video"], said, {"video_id": Path(row["video"]).stem}, about)


def read_how2qa(folder: Path, split: str) -> Iterator[Row]:
    """A table without a header; `clip` is a file of video-clips/, where all clips of a video have one suffix."""
    suffixes = how_to_suffixes(folder / "video-clips")
    for row in read_cells(folder, "how2QA_train_release.csv", HOW_TO_COLUMNS):
        begin, end = ast.literal_eval(row["times"].replace(":", ","))
        suffix = suffixes.get(row["video_id"], "")
        name = f"{row['video_id']}_{round(begin, 2)}_{round(end, 2)}.{suffix}"
        why = ""
        if begin >= end:
            why = "clip without a length"
        elif not suffix:
            why = "question about a video of which no clip is there"
        elif row["video_id"] in DAMAGED_HOW_TO or name in DAMAGED_HOW_TO_CLIPS:
            why = "question about a video that allenai/molmo2 found damaged"
        yield {**row, "clip": name, WHY: why}


def how_to_suffixes(clips: Path) -> dict[str, str]:
    """The suffix of each video's clips, files such as VIDEO_BEGIN_END.mp4; FileNotFoundError where there are none."""
    found: dict[str, str] = {}
    for path in sorted(clips.iterdir()):
        parts = path.stem.rsplit("_", 2)
        if len(parts) == 3 and path.suffix and all(map(_is_number, parts[1:])):
            found.setdefault(parts[0], path.suffix.removeprefix("."))
    if not found:
        raise FileNotFoundError(None, None, f"{clips}/VIDEO_BEGIN_END.mp4")
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def how2qa(row: Row, split: str) -> list[Item]:
    """Three wrong answers and a right one about a clip of a film that shows how to do something."""
    refuse(row)
    wrong = [row[name] for name in HOW_TO_COLUMNS[2:5]]
    if None in (*wrong, row["answer"]):
        raise LeftOut("row with too few cells")
    options, place = placed(row["question"], row["answer"], wrong)
    said = [choice(row["question"], options, place)]
    return learnt(f"video-clips/{row['clip']}", said, {"video_id": row["video_id"]})


SOURCES = [
    Source(
        "paxion",
        LICENCE,
        LAYOUT,
        paxion,
        TRAIN,
        group="shown",
        read=read_paxion,
        by_hand="download the hub's allenai/Molmo2-Paxion into DIR, put the videos of Something-Something V2 into"
        " DIR/sth-sth-v2/videos and, of Ego4D, clips (VIDEO_BEGIN_END.mp4, seconds with three decimals) into"
        " DIR/paxion-ego4d-clips or whole videos, of which each clip's record holds a copy, into"
        " DIR/Ego4d/ego4d_data/v2/full_scale",
    ),
    Source(
        "how2qa",
        LICENCE,
        LAYOUT,
        how2qa,
        TRAIN,
        group="clip",
        read=read_how2qa,
        by_hand="put how2QA_train_release.csv of https://github.com/ych133/How2R-and-How2QA into DIR and the clips that"
        " it names, cut out of YouTube's videos, into DIR/video-clips as VIDEO_BEGIN_END.mp4 (seconds, two decimals at"
        " most)",
    ),
]
