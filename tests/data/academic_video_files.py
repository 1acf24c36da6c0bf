"""Small files of academic video sets in their publishers' layouts; every video is the same one of 2.4 seconds."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from source_helpers import Hub

from molmo_ds.testing.small_videos import film

VIDEO = film([125 * i for i in range(20)])
datasets.disable_progress_bars()


class Files(Hub):
    """The folder of one set."""

    def videos(self, *names: str) -> None:
        for name in names:
            self.file(name, VIDEO)

    def lines(self, name: str, lines: list[str]) -> None:
        self.file(name, "".join(f"{line}\n" for line in lines).encode())

    def objects(self, name: str, rows: list[dict[str, Any]]) -> None:
        self.lines(name, [json.dumps(row) for row in rows])

    def csv(self, name: str, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        self.file(name, text.getvalue().encode())


def intent_qa(to: Files) -> None:
    row = {"video_id": 13884124143, "frame_count": 853, "width": 640, "height": 360}
    row |= {"question": "why does the man wave", "answer": 2, "qid": 1, "type": "CW"}
    options = ["jump", "nod", "greet", "play", "sit"]
    row |= {f"a{number}": text for number, text in enumerate(options)}
    row |= {"action": "wave", "lemma": "wave", "lemma_id": 1}
    other = {**row, "question": "what did he do after", "answer": 0, "qid": 3, "type": "TN"}
    wrong = {**row, "answer": 5}
    away = {**row, "video_id": 7093500213}
    to.csv("train.csv", [row, wrong, away, other])
    to.videos("videos/13884124143.mp4", "videos/7093500213.mp4")


def road_text_vqa(to: Files) -> None:
    row = {"questionId": 1, "video": "1.mp4", "question": "What is the name of the shop?"}
    rows = [{**row, "answer": ["Maple"]}]
    rows += [{**row, "questionId": 2, "question": "Which street?", "answer": ["Main St", "Main"]}]
    to.json("train.json", {"data": rows})
    to.videos("videos/1.mp4")


def countix_oe(to: Files) -> None:
    rows = [("train/push up/a.mp4", "push up", 12), ("train/juggling balls/b.mp4", "juggling", 3)]
    columns = ("video_path", "class", "count")
    to.csv("countix_train_mapped.csv", [dict(zip(columns, row)) for row in rows])
    asked = {"push up": ["How many push ups?"], "juggling": ["How many throws?", "How often?"]}
    to.json("class_to_question.json", asked)
    to.videos(*(f"kinetics700/{row[0]}" for row in rows))


def camerabench_qa(to: Files) -> None:
    asked = {"Question": "How does the camera move?", "Answer": "It pans left."}
    asked["NegativeAnswers"] = ["It tilts up.", "It stands still."]
    rows = [{"video_path": "a.mp4", "mc_qa_list": [asked]}, {"video_path": "b.mp4"}]
    rows[1]["mc_qa_list"] = []
    to.parquet(rows, "camerabench_qa")
    to.videos("train/a.mp4", "train/b.mp4")


def ego4d_all(to: Files) -> None:
    clip = "dd08bc58-b614_347.625_349.000_custom_clip.mp4"
    said = [
        {
            "question": "Label the clip.",
            "answer": "wash_hands",
            "style": "ego4d_mq_label_clip",
        },
        {
            "question": "Where did I put the cup?",
            "answer": "Start: 0.50, end: 1.25",
            "style": "ego4d_nlq_temporal_grounding",
        },
    ]
    row = {"clip": clip, "corrupt": False, "message_list": said}
    to.objects("ego4d_cached_train_metadata.jsonl", [row, {**row, "corrupt": True}])
    to.videos(f"ego4d-clips/{clip}")


def qv_highlights(to: Files) -> None:
    row = {"qid": 9, "query": "A dog runs.", "duration": 150, "vid": "x_60.0_210.0"}
    row |= {"relevant_clip_ids": [0], "saliency_scores": [[1, 2, 3]]}
    few = {**row, "relevant_windows": [[0, 2], [10, 24]]}
    many = {**row, "relevant_windows": [[i, i + 2] for i in range(0, 60, 10)]}
    to.objects("highlight_train_release.jsonl", [few, many, {**few, "vid": "not_here"}])
    to.videos("videos/x_60.0_210.0.mp4")


def video_localized_narratives(to: Files) -> None:
    name = "26 Bad Friend Nominees - FailArmy Hall Of Fame (May 2017) HD20"
    asked = {"question_id": "question_train_0", "raw_question": "what does he wear"}
    asked["raw_answer"] = "black shorts"
    rows = [{"video_name": name, "qa_pairs": [asked]}, {"video_name": "none", "qa_pairs": []}]
    to.json("videoqa/text_output/oops_train/qa_text_output.json", {"annotations": rows})
    to.videos(f"oops/oops_video/{name}.mp4")


def video_localized_narratives_caption(to: Files) -> None:
    row = {"id": "7", "video": "UVO/uvo_videos_sparse/a.mp4"}
    row |= {"captions": ["A man sits down.", "A cat runs."], "actor_names": ["Man", "the Cat"]}
    datasets.Dataset.from_list([row]).save_to_disk(str(to.folder / "hf_dataset"))
    to.videos("UVO/uvo_videos_sparse/a.mp4")


def motionbench_train(to: Files) -> None:
    row = {"key": 1, "video_path": "a.mp4", "motion_caption": "A ball falls and bounces twice."}
    to.objects("MotionBenchCaption-train/train.jsonl", [row])
    to.videos("MotionBenchCaption-train/videos/a.mp4")


def moments_in_time_qa(to: Files) -> None:
    labels = ("running", "playing+music", "adult+female+singing", "running")
    rows = [
        {"video_path": f"{label}/{i}.mp4", "label": label, "votes": 3}
        for i, label in enumerate(labels)
    ]
    to.csv("train.csv", rows)
    to.videos(*(f"train-videos/{row['video_path']}" for row in rows[:3]))


def kinetics_qa(to: Files) -> None:
    to.lines("kinetics710/k710_label_map.txt", ["abseiling", "air drumming", "zumba"])
    listed = {"700": ["train/a.mp4 1", "train/b.mp4 2"], "600": ["train/a.mp4 1", "train/c.mp4 0"]}
    for number, lines in listed.items():
        to.lines(f"kinetics710/k{number}_train_list_videos.txt", lines)
        to.json(f"kinetics710/map_k{number}.json", [0, 1, 2])
    to.parquet([{"video": "kinetics700/train/zumba/b.mp4"}], "kinetics_corrupt")
    to.videos(*(f"kinetics700/train/{place}.mp4" for place in ("air drumming/a", "zumba/b")))
    to.videos("kinetics600/train/air_drumming/a.mp4")


def epic_kitchens_qa(to: Files) -> None:
    row = {"narration_id": "P01_01_0", "participant_id": "P01", "video_id": "P01_01"}
    row |= {"start_timestamp": "00:00:01.089", "stop_timestamp": "00:01:02.5"}
    row["narration"] = "open door"
    bad = {**row, "video_id": "P01_102", "start_timestamp": "00:03:49.91"}
    bad["stop_timestamp"] = "00:03:54.3"
    rows = [row, bad, {**row, "narration": "turn on light"}, {**row, "video_id": "P01_02"}]
    to.csv("epic-kitchens-100-annotations/EPIC_100_train.csv", rows)
    clips = ("P01_01_1.089_62.500", "P01_102_229.910_234.300")
    to.videos(*(f"epic-kitchens-clips/P01/videos/{clip}.mp4" for clip in clips))


def charades_sta_all_qa(to: Files) -> None:
    lines = ["AO8RW 0.0 1.5##a person is putting a book on a shelf."]
    lines += ["AO8RW 0.0 1.5##person puts it there.", "AO8RW 1.0 1.0##nothing."]
    lines += ["AKKWU 0.5 2.0##a person laughs.", "Y6R7T 0.0 2.0##not here."]
    to.lines("charades_sta_train.txt", lines)
    to.videos("Charades_v1/AO8RW.mp4", "Charades_v1/AKKWU.mp4")


def coin_all_qa(to: Files) -> None:
    steps = [([0.0, 1.0], "unscrew the screw"), ([1.5, 2.0], "remove the tire")]
    steps += [([2.0, 2.0], "put on the tire")]
    told = [{"id": "1", "segment": segment, "label": label} for segment, label in steps]
    about = {"class": "ChangeCarTire", "duration": 2.3, "annotation": told}
    database = {
        "a-b_c": {**about, "subset": "training"},
        "tested": {**about, "subset": "testing"},
        "not_here": {**about, "subset": "training"},
    }
    to.json("COIN.json", {"database": database})
    clip = {"clip_start_time": 1.5, "clip_end_time": 2.0}
    to.parquet([{"video_id": "a-b_c", "metadata": clip}], "coin_corrupt")
    to.videos("videos/a-b_c.mkv", "videos/tested.mp4")


def youcook2_all_qa(to: Files) -> None:
    steps = [([0, 1], "cut the onion"), ([1, 2], "fry it."), ([2, 2], "eat")]
    told = [{"id": i, "segment": segment, "sentence": s} for i, (segment, s) in enumerate(steps)]
    broken = [{"id": 0, "segment": [595, 613], "sentence": "stir"}]
    database = {
        "xHr8X2Wpmno": {"subset": "training", "annotations": told},
        "UB1_MNpdvgs": {"subset": "training", "annotations": broken},
        "held": {"subset": "validation", "annotations": told},
    }
    to.json("youcookii_annotations_trainval.json", {"database": database})
    to.videos("videos/xHr8X2Wpmno.webm", "videos/UB1_MNpdvgs.mp4", "videos/held.mp4")


def activitynet_all_qa(to: Files) -> None:
    told = [{"segment": [0.25, 1.5], "label": "Tai chi"}, {"segment": [2.0, 1.0], "label": "Zumba"}]
    database = {
        "okC18bPTils": {"subset": "training", "annotations": told},
        "held": {"subset": "validation", "annotations": told[:1]},
        "asked": {"subset": "testing", "annotations": []},
    }
    to.json("activity_net.v1-3.min.json", {"version": "VERSION 1.3", "database": database})
    asked = [("okC18bPTils", "are all the people in the video men "), ("asked", "who runs?")]
    names = ("video_name", "question", "question_id")
    rows = [dict(zip(names, (*one, f"v_{one[0]}_3"))) for one in asked]
    to.json("train_q.json", [*rows, {**rows[1], "question_id": "unanswered"}])
    answers = [("no", "v_okC18bPTils_3"), ("2", "v_asked_3")]
    to.json("train_a.json", [{"answer": a, "type": 3, "question_id": name} for a, name in answers])
    to.videos(*(f"all-videos/{name}.mp4" for name in database))


WRITERS: dict[str, Callable[[Files], None]] = {
    write.__name__: write
    for write in (
        *(intent_qa, video_localized_narratives, road_text_vqa, countix_oe, camerabench_qa),
        *(motionbench_train, moments_in_time_qa, kinetics_qa, charades_sta_all_qa, coin_all_qa),
        *(youcook2_all_qa, activitynet_all_qa, ego4d_all, epic_kitchens_qa),
        *(video_localized_narratives_caption, qv_highlights),
    )
}


def write_files(folder: Path) -> None:
    """FOLDER/NAME for every set."""
    for name, write in WRITERS.items():
        (folder / name).mkdir(parents=True)
        write(Files(folder / name))
