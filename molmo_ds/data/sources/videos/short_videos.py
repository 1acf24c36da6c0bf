"""Questions about short videos: MVBench, TempCompass, Perception Test, EgoSchema, NExT-QA, TOMATO, MotionBench, FGQA.

All are for evaluation, Perception Test and NExT-QA for training too, and fetched by hand, since most of their videos
are other people's. Layouts: the loaders of allenai/molmo2 at f3cb108, olmo/data/academic_video_datasets.py; TempCompass
and FGQA: those of the public fork mattw-ai2/robo_mm_olmo_gantry at 6832f80, olmo/data/video_datasets.py.
"""

from collections.abc import Iterator
from pathlib import Path

from molmo_ds.data.sources.source import Item, Picture, Row, Source, annotation, read_json
from molmo_ds.data.sources.videos.video_answers import (
    LAYOUT,
    LICENCE,
    TRAIN,
    WHY,
    learnt,
    read_cells,
    read_lines,
    refuse,
)
from molmo_ds.data.sources.videos.video_answers import choice as learnt_choice
from molmo_ds.data.sources.videos.video_choices import (
    DIRECTLY,
    ONLY_LETTER,
    STYLE,
    choice,
    clip_of,
    lettered,
    read_table,
)

MVBENCH = {  # part -> folder of its videos
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
FRAMES = "episodic_reasoning"  # whose videos are folders of pictures
FRAME_RATE = 3.0  # of them
TEMP_COMPASS = {  # task -> (style, last line of the question)
    "multi-choice": (STYLE, "Please directly give the best option:"),
    "yes_no": ("video_eval_short_answer", "Please answer yes or no:"),
    "caption_matching": (STYLE, "Please directly give the best option:"),
    "captioning": ("demo", ""),
}
TOMATO = ("count", "direction", "rotation", "shape&trend", "velocity&frequency", "visual_cues")


def read_mvbench(folder: Path, split: str) -> Iterator[Row]:
    """json/PART.json and video/FOLDER/NAME; the frames of a video that is a folder are listed here."""
    for part, home in MVBENCH.items():
        for number, row in enumerate(read_json(folder, f"json/{part}.json")):
            place = f"video/{home}/{row['video']}"
            frames = sorted((folder / place).iterdir(), key=_number) if part == FRAMES else []
            names = [
                f"{place}/{frame.name}" for frame in frames if frame.suffix in (".jpg", ".png")
            ]
            yield {**row, "part": part, "number": number, "place": place, "frames": names}


def _number(frame: Path) -> tuple[int, str]:
    digits = "".join(letter for letter in frame.stem if letter.isdigit())
    return int(digits or 0), frame.name


def mvbench(row: Row, split: str) -> list[Item]:
    """One of twenty parts; five of them ask about a part of a video."""
    options = row["candidates"]
    lines = [row["question"], *lettered(options), ONLY_LETTER]
    known = {"example_id": f"{row['part']}_{row['number']}", "task_type": row["part"]}
    known["video_id"] = row["place"]
    about = clip_of(row, "start", "end")
    right = options.index(row["answer"])
    if not row["frames"]:
        return choice(row["place"], lines, options, right, known, about)
    [asked] = choice("", lines, options, right, known, {**about, "fps": FRAME_RATE})
    shown = tuple(Picture(path=frame) for frame in row["frames"])
    return [Item(shown, asked.annotations, asked.metadata, asked.about)]


def read_temp_compass(folder: Path, split: str) -> Iterator[Row]:
    """TASK/test-00000-of-00001.parquet."""
    for task in TEMP_COMPASS:
        for number, row in enumerate(read_table(folder, f"{task}/test-00000-of-00001.parquet")):
            yield {**row, "task": task, "number": number}


def temp_compass(row: Row, split: str) -> list[Item]:
    """Four ways to ask about speed, direction, order, change and action."""
    style, last = TEMP_COMPASS[row["task"]]
    text = "\n".join([row["question"], last])
    known = {"example_id": f"{row['task']}_{row['number']}", "task": row["task"]}
    known |= {"video_id": row["video_id"], "temporal_aspect": row["dim"]}
    known["question"] = row["question"]
    known |= {key: row[key] for key in ("mc_question", "mc_answer") if row.get(key)}
    asked = annotation(style, question=text, answer=row["answer"])
    return [Item((Picture(path=f"videos/{row['video_id']}.mp4"),), [asked], known)]


def read_perception(folder: Path, split: str) -> Iterator[Row]:
    """The hub's tables; of the training split all_train.json, an object of videos with all that is said of them."""
    if split != "train":
        yield from read_table(folder, _PERCEPTION[split])
        return
    for name, said in read_json(folder, "all_train.json").items():
        for asked in said["mc_question"]:
            yield {**asked, "video_name": name}


def perception_test(row: Row, split: str) -> list[Item]:
    """Three options; the test split has no answers, and the questions about a video of training are one record."""
    options = list(row["options"])
    if split == "train":
        said = learnt_choice(row["question"], options, row["answer_id"])
        video = f"train_videos/{row['video_name']}.mp4"
        return learnt(video, [said], {"video_id": row["video_name"]})
    known = {"example_id": f"{row['video_name']}_{row['question_id']}"}
    known |= {"video_id": row["video_name"]}
    known |= {key: row[key] for key in ("area", "reasoning") if row.get(key)}
    lines = [row["question"], *lettered(options), DIRECTLY]
    video = f"{'videos' if split == 'validation' else 'Test/videos'}/{row['video_name']}.mp4"
    answer = row.get("answer_id") if split == "validation" else None
    return choice(video, lines, options, None if answer is None else int(answer), known)


def ego_schema(row: Row, split: str) -> list[Item]:
    """Five options, which have their letters already; of the whole set only a subset has public answers."""
    options = list(row["option"])
    known = {"example_id": f"{row['question_idx']}_{row['video_idx']}"}
    known |= {"video_id": row["video_idx"]}
    answer = None if row.get("answer") is None else int(row["answer"])
    video = f"videos/{row['video_idx']}.mp4"
    return choice(video, [row["question"], *options, DIRECTLY], options, answer, known)


def read_nextqa(folder: Path, split: str) -> Iterator[Row]:
    """The hub's table; of the training split train.csv, whose videos map_vid_vidorID.json names."""
    if split != "train":
        yield from read_table(folder, "MC/test-00000-of-00001.parquet")
        return
    places = read_json(folder, "map_vid_vidorID.json")
    for row in read_cells(folder, "train.csv"):
        named = row["video"] in places
        why = "" if named else "question about a video that map_vid_vidorID.json does not name"
        yield {**row, "place": f"NExTVideo-all-videos/{places.get(row['video'])}.mp4", WHY: why}


def nextqa(row: Row, split: str) -> list[Item]:
    """Five options in columns of their own; the questions about a video of training are one record."""
    if split == "train":
        refuse(row)
        options = [row[f"a{number}"] for number in range(5)]
        said = learnt_choice(row["question"], options, int(row["answer"]))
        return learnt(row["place"], [said], {"video_id": row["video"]})
    options = [row[f"a{number}"].strip() for number in range(5)]
    known = {"example_id": f"{row['video']}_{row['qid']}_type_{row['type']}"}
    known |= {"video_id": str(row["video"]), "question_type": row["type"]}
    lines = [row["question"].strip(), *lettered(options), DIRECTLY]
    return choice(f"NExTVideo/{row['video']}.mp4", lines, options, int(row["answer"]), known)


def read_tomato(folder: Path, split: str) -> Iterator[Row]:
    """data/KIND.json, an object of questions by their ids."""
    for kind in TOMATO:
        for number, row in read_json(folder, f"data/{kind}.json").items():
            yield {**row, "example_id": f"{kind}_{number}", "reasoning_type": kind}


def tomato(row: Row, split: str) -> list[Item]:
    """Options that training's own prompt shows."""
    kind = row["demonstration_type"]
    asked = annotation(
        "video_multiple_choice",
        question=row["question"],
        options=list(row["options"]),
        answer_index=row["answer"],
    )
    known = {key: row[key] for key in ("example_id", "reasoning_type", "demonstration_type")}
    known["video_id"] = f"{kind}/{row['key']}"
    return [Item((Picture(path=f"videos/{kind}/{row['key']}.mp4"),), [asked], known)]


def read_motionbench(folder: Path, split: str) -> Iterator[Row]:
    """video_info.meta.jsonl, a video a line; questions without a public answer are the test split."""
    for video in read_lines(folder, "video_info.meta.jsonl"):
        homes = [
            home
            for home in ("self-collected", "public-dataset")
            if (folder / home / video["video_path"]).is_file()
        ]
        for asked in video["qa"]:
            if (asked["answer"] == "NA") == (split == "test"):
                yield {**video, **asked, "home": (homes or ["public-dataset"])[0]}


def motionbench(row: Row, split: str) -> list[Item]:
    """The question's text holds its options."""
    known = {"example_id": f"{row['uid']}_{row['key']}", "video_id": row["video_path"]}
    known |= {"task_type": row.get("question_type", ""), "video_type": row.get("video_type", "")}
    answer = None if row["answer"] == "NA" else row["answer"]
    asked = annotation(STYLE, question=row["question"], answer=answer)
    return [Item((Picture(path=f"{row['home']}/{row['video_path']}"),), [asked], known)]


def read_fgqa(folder: Path, split: str) -> Iterator[Row]:
    """plm_fgqa_test.jsonl, a question a line."""
    yield from read_lines(folder, "fgqa/plm_fgqa_test.jsonl")


def fgqa(row: Row, split: str) -> list[Item]:
    """Two options, in a question for each wrong one: those of one `group` are one question of the benchmark."""
    numbered = {int(name.rpartition("_")[2]): text for name, text in row["options"].items()}
    options = [numbered[number] for number in sorted(numbered)]
    about = row["metadata"]
    known = {"example_id": row["uid"], "video_id": row["video"], "group": row["qa_uid"]}
    known["source"] = about["source_dataset"]
    lines = [row["question"], *lettered(options), DIRECTLY]
    return choice(f"videos/{row['video']}", lines, options, int(row["answer_index"]), known)


_PERCEPTION = {
    "validation": "mc_question_val/validation-00000-of-00001.parquet",
    "test": "Test/mc_question/test-00000-of-00001.parquet",
}
_EGO = {
    "validation": "Subset/test-00000-of-00001.parquet",
    "test": "MC/test-00000-of-00001.parquet",
}
_VALIDATION = {"validation": "validation"}
_TEST = {"test": "test"}
_BOTH = _VALIDATION | _TEST

SOURCES = [
    Source(
        "mvbench",
        LICENCE,
        LAYOUT,
        mvbench,
        _VALIDATION,
        read=read_mvbench,
        by_hand="download the hub's OpenGVLab/MVBench into DIR, unpack the zips of video/ there, move what is in"
        " data0613/ beside its likes, and put NTU's videos (MVBench_videos_ntu.txt) into video/nturgbd",
    ),
    Source(
        "temp_compass",
        LICENCE,
        "the fork's video_datasets.py",
        temp_compass,
        _VALIDATION,
        read=read_temp_compass,
        by_hand="download the hub's lmms-lab/TempCompass into DIR and unpack its videos into DIR/videos",
    ),
    Source(
        "perception_test",
        LICENCE,
        LAYOUT,
        perception_test,
        TRAIN | _BOTH,
        group="video_name",
        read=read_perception,
        by_hand="put mc_question_val/ of the hub's lmms-lab/PerceptionTest_Val and its videos (videos/), for the test"
        " split Test/mc_question/ and Test/videos/, and for training all_train.json and train_videos/, into DIR"
        " (https://github.com/google-deepmind/perception_test)",
    ),
    Source(
        "ego_schema",
        LICENCE,
        LAYOUT,
        ego_schema,
        _BOTH,
        read=lambda folder, split: read_table(folder, _EGO[split]),
        by_hand="download the hub's lmms-lab/egoschema into DIR and unpack its zips there",
    ),
    Source(
        "nextqa_mc",
        LICENCE,
        LAYOUT,
        nextqa,
        TRAIN | _TEST,
        group="video",
        read=read_nextqa,
        by_hand="download the hub's lmms-lab/NExTQA into DIR and unpack its videos into DIR/NExTVideo; for training put"
        " train.csv and map_vid_vidorID.json of https://github.com/doc-doc/NExT-QA (dataset/nextqa) into DIR and its"
        " videos into DIR/NExTVideo-all-videos",
    ),
    Source(
        "tomato",
        LICENCE,
        LAYOUT,
        tomato,
        _TEST,
        read=read_tomato,
        by_hand="put data/ of https://github.com/yale-nlp/TOMATO and the videos that its page names (videos/) into DIR",
    ),
    Source(
        "motionbench",
        LICENCE,
        LAYOUT,
        motionbench,
        _BOTH,
        read=read_motionbench,
        by_hand="download the hub's zai-org/MotionBench with its videos (self-collected/, public-dataset/) into DIR",
    ),
    Source(
        "plm_fgqa",
        LICENCE,
        "the fork's video_datasets.py",
        fgqa,
        _VALIDATION,
        read=read_fgqa,
        by_hand="put fgqa/ of the hub's facebook/PLM-VideoBench into DIR, cut source_start_time to source_end_time out"
        " of each source video, and put the clip under the name of `video` into DIR/videos",
    ),
]
