"""Small files of the academic sets that ask about videos, in the layout in which each set is published."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from molmo_ds.testing.small_videos import film

VIDEO = b"a video"  # each gets a length of its own
SHORTEST = 18  # frames, eight a second
TGIF_CHOICE = ("gif_name", "question", "a1", "a2", "a3", "a4", "a5", "answer", "vid_id", "key")
TGIF_FREE = ("gif_name", "question", "answer", "vid_id", "key")
NEXT = ("video", "frame_count", "width", "height", "question", "answer", "qid", "type")
TRAFFIC = ("record_id", "vid_id", "vid_filename", "perspective", "q_body", "q_type")
NEWS = "final_data_feb_16"
TV = "video-frames/frames_hq"


def _choices(*texts: str, first: int = 0) -> dict[str, str]:
    return {f"a{first + i}": text for i, text in enumerate(texts)}


def _tgif_row(name: str, question: str, answer: Any, *options: str) -> list[Any]:
    return [name, question, *options, answer, "ID", 1]


def _llava(number: int, video: str, *pairs: tuple[str, str]) -> dict[str, Any]:
    turns = []
    for question, answer in pairs:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": number, "data_source": "NextQA", "video": video, "conversations": turns}


def _llava_parts(kind: str) -> dict[str, Any]:
    """Files of every part that has such questions; the same entry stands twice in one."""
    parts = ["0_30_s_nextqa", "30_60_s_nextqa", "1_2_m_nextqa", "2_3_m_nextqa"]
    others = {"mc": "perceptiontest", "oe": "activitynetqa"}[kind]
    lengths = {"mc": ["0_30_s", "30_60_s"], "oe": ["0_30_s", "30_60_s", "1_2_m", "2_3_m"]}[kind]
    files: dict[str, Any] = {}
    for part in [*parts, *(f"{length}_{others}" for length in lengths)]:
        video = f"{part}/1.mp4"
        asked = ("<image>\nWho?\nA. I\nB. you", " B. you\n") if kind == "mc" else ("Who?", "you ")
        entry = _llava(7, video, asked, ("And <image>\nthen?", "No."))
        again = _llava(7, video, ("Once more?", "Yes"))
        files[f"{part}/{part}_{kind}_qa_processed.json"] = [entry, again]
        files[f"NextQA/{video}"] = VIDEO
    return files


def _tv(clip: str, times: str, question: str, **known: Any) -> dict[str, Any]:
    row = {"q": question, "qid": 1, "answer_idx": 2, "show_name": "Castle", "vid_name": clip}
    return {**row, "ts": times, **_choices("one", "two", "three", "four", "five"), **known}


def _star(question: str, answer: str, begin: Any, end: float, *options: str) -> dict[str, Any]:
    choices = [
        {"choice_id": i, "choice": text, "choice_program": []} for i, text in enumerate(options)
    ]
    row = {"question_id": "I", "question": question, "answer": answer, "choices": choices}
    return {**row, "video_id": "V0", "start": begin, "end": end, "situations": {}}


def _scene(name: str, said: str | None, *answers: int) -> dict[str, Any]:
    examples = [
        {"question": f"Question {i}?", "choices": list("abcde"), "answer_key_position": answer}
        for i, answer in enumerate(answers)
    ]
    row = {"video_id": name, "movie_name": "A film", "subtitles": said}
    return {**row, "examples": examples}


def _ego(video: str, begin: float, end: float, label: str, opposite: str) -> dict[str, Any]:
    row = {"video_uid": video, "clip_start": begin, "clip_end": end, "clip_text": label}
    return {**row, "action_antonym_clip_text": opposite}


FILES: dict[str, dict[str, Any]] = {
    "tgif": {
        "Train_action_question.csv": [
            TGIF_CHOICE,
            _tgif_row("g0", 'What does the "cat" do 3 times?', 4, "a", "b", "c", "d", "jump"),
            _tgif_row("g1", "What?", 0, "sit", "b", "c", "d", "e"),
        ],
        "Train_count_question.csv": [TGIF_FREE, _tgif_row("g1", "How often?", 3)],
        "Train_transition_question.csv": [
            TGIF_CHOICE,
            _tgif_row("g0", "What after it?", 1, "a", "it's over", "c", "d", "e"),
            _tgif_row("gone", "What?", 1, "a", "b", "c", "d", "e"),
        ],
        "Train_frameqa_question.csv": [TGIF_FREE, _tgif_row("g0", "What colour?", "red")],
        "videos/g0.mp4": VIDEO,
        "videos/g1.mp4": VIDEO,
    },
    "news_video_qa_filtered": {
        f"{NEWS}/json_files/raw_files/new_train.json": [
            {"uni_clipped_id": "1x2", "question": "What is written?", "answer": "NEWS 7"},
            {"uni_clipped_id": "1x2", "question": "And below?", "answer": "  "},
            {"uni_clipped_id": "389x18", "question": "What?", "answer": "no"},
            {"uni_clipped_id": "1x2", "question": "Who?", "answer": " a man "},
        ],
        f"{NEWS}/videos/train/1x2.mp4": VIDEO,
        f"{NEWS}/videos/train/389x18.mp4": VIDEO,
    },
    "social_iq2": {
        "qa/qa_train.jsonl": [
            {"q": "Why?", "vid_name": "v", **_choices("a", "b", "c", "d"), "answer_idx": 3},
            {"q": "How?", "vid_name": "w", **_choices("a", "b", "c", "d"), "answer_idx": 0},
            {"q": "When?", "vid_name": "v", **_choices("e", "f", "g", "h"), "answer_idx": 0},
            {"q": "Odd?", "vid_name": "v", **_choices("a", "b", "c", "d"), "answer_idx": 4},
        ],
        "video/v.mp4": VIDEO,
    },
    "sutd_trafficqa": {
        "R2_train.jsonl": [
            [*TRAFFIC, "option0", "option1", "option2", "option3", "answer"],
            [1, 5, "b_5.mp4", 0, "What happens?", "U", "", "a crash", "nothing", "", 2],
            [2, 6, "b_6.mp4", 0, "Why?", "U", "rain", "ice", "fog", "sun", 0],
            [3, 5, "b_5.mp4", 0, "Could it?", "C", "yes", "no", "", "", 1],
        ],
        "compressed_videos/b_5.mp4": VIDEO,
        "compressed_videos/b_6.mp4": VIDEO,
    },
    "sportsqa_oe": {
        "meta-data/train.json": {
            "video": {"0": "gym/a", "1": "ball/b", "2": "gym/a", "3": "gym/gone", "4": "old"},
            "question": {"0": "How often?", "1": "Who?", "2": "What?", "3": "Where?", "4": "Why?"},
            "answer": {"0": "twice", "1": "number 5", "2": "a vault", "3": "here", "4": "so"},
        },
        "gym/a.webm": VIDEO,
        "old.avi": b"RIFF",
        "ball/b.mp4": VIDEO,
    },
    "clevrer": {
        "train.json": [
            {
                "video_filename": "video_02007.mp4",
                "questions": [
                    {"question": "What colour?", "answer": "blue"},
                    {
                        "question": "What is responsible?",
                        "choices": [
                            {"choice_id": 0, "choice": "the cube", "answer": "wrong"},
                            {"choice_id": 1, "choice": "the ball", "answer": "correct"},
                        ],
                    },
                    {
                        "question": "Which is not?",
                        "choices": [
                            {"choice_id": 0, "choice": "the cube", "answer": "correct"},
                            {"choice_id": 1, "choice": "the ball", "answer": "correct"},
                        ],
                    },
                    {
                        "question": "What else?",
                        "choices": [{"choice_id": 0, "choice": "no", "answer": "wrong"}],
                    },
                ],
            },
            {"video_filename": "video_00001.mp4", "questions": []},
        ],
        "video_02000-03000/video_02007.mp4": VIDEO,
    },
    "star": {
        "STAR_train.json": [
            _star("What was opened?", "The door.", 0, 1.25, "The door.", "A box.", "A bag.", "It."),
            _star("What next?", "Sit.", 1, 2.0, "Stand.", "Sit.", "Run.", "Sit."),
            *(_star(f"Number {i}?", "Yes.", 0.0, 1.25, "No.", "Yes.") for i in range(5)),
            _star("And?", "Nothing.", 0, 1.25, "A.", "B.", "C.", "D."),
        ],
        "Charades_v1/V0.mp4": VIDEO,
    },
    "funqa": {
        "FunQA_train.json": [
            {
                "task": "H2",
                "visual_input": "H_A_1.mp4",
                "instruction": "What?",
                "output": "A\nfall.",
            },
            {"task": "H1", "visual_input": "H_A_1.mp4", "instruction": "When?", "output": "[1, 9]"},
            {"task": "C5", "visual_input": "C_K_2.mp4", "instruction": "Score?", "output": "7"},
            {"task": "C4", "visual_input": "C_K_2.mp4", "instruction": "Title?", "output": "Art"},
            {"task": "C3", "visual_input": "C_K_2.mp4", "instruction": "Why?", "output": "New."},
            {"task": "M2", "visual_input": "M_gone.mp4", "instruction": "What?", "output": "x"},
        ],
        "Funqa_mcqa_v1.json": [
            {
                "visual_input": "H_A_1.mp4",
                "instruction": "Look.\nThe Question is: Who falls? \n The Options are: "
                "['Options 1: a man ', \"Options 2: it's me\"]",
                "gt": "2",
            },
            {
                "visual_input": "M_of_test.mp4",
                "instruction": "\nThe Question is: x\n The Options are: ['Options 1: a']",
                "gt": 1,
            },
            {
                "visual_input": "H_A_1.mp4",
                "instruction": "\nThe Question is: x\n The Options are: ['Options 1: a']",
                "gt": "3",
            },
            {
                "visual_input": "H_A_1.mp4",
                "instruction": "\nThe Question is: x\n The Options are: ['Options 1: a']",
                "gt": "none",
            },
        ],
        "train/train_humor/H_A_1.mp4": VIDEO,
        "train/train_creative/C_K_2.mp4": VIDEO,
        "test/test_magic/M_of_test.mp4": VIDEO,
    },
    "llava_video_mc_academic": _llava_parts("mc"),
    "llava_video_oe_academic": _llava_parts("oe"),
    "perception_test": {
        "all_train.json": {
            "video_1": {
                "mc_question": [
                    {"id": 0, "question": "Is it?", "options": ["a", "b", "c"], "answer_id": 2},
                    {"id": 1, "question": "What?", "options": ["d", "e", "f"], "answer_id": 0},
                ],
                "object_tracking": [],
            },
            "video_2": {"mc_question": []},
        },
        "train_videos/video_1.mp4": VIDEO,
    },
    "nextqa_mc": {
        "train.csv": [
            [*NEXT, "a0", "a1", "a2", "a3", "a4"],
            [4010069381, 369, 640, 480, "how do they sit, now", 1, 6, "CH", *"abcde"],
            [24, 369, 640, 480, "why?", 0, 0, "CW", "to win", *"bcde"],
            [4010069381, 369, 640, 480, "where", 4, 7, "DL", *"fghij"],
        ],
        "map_vid_vidorID.json": {"4010069381": "1164/4010069381", "24": "0/24"},
        "NExTVideo-all-videos/1164/4010069381.mp4": VIDEO,
        "NExTVideo-all-videos/0/24.mp4": VIDEO,
    },
    "tvqa_with_sub": {
        "tvqa_train.jsonl": [
            _tv("castle_s01_clip_00", "1.4-2.99", "Who speaks?"),
            _tv("castle_s01_clip_00", "nan-nan", "When?"),
            _tv("castle_s01_clip_00", "1.5-2.7", "What is said?", answer_idx=0),
            _tv("castle_s01_clip_01", "0-1.0", "Without a word?"),
            _tv("castle_s01_clip_02", "0-1.0", "Without a picture?"),
            _tv("castle_s08e08_seg02_clip_14", "0-6.4", "Damaged?"),
        ],
        "tvqa_preprocessed_subtitles.jsonl": [
            {
                "vid_name": "castle_s01_clip_00",
                "sub": [
                    {"start": 0.4, "end": 1.6, "text": "Before."},
                    {"start": 2.0, "end": 2.5, "text": "Within."},
                    {"start": 2.9, "end": 4, "text": "To the end."},
                    {"start": 5, "end": 6, "text": "After."},
                    {"start": 2.2, "text": "Without an end."},
                ],
            },
            {"vid_name": "castle_s01_clip_01", "sub": []},
        ],
        "missing_clips.txt": "",
        **{f"{TV}/castle_frames/castle_s01_clip_00/{i:05d}.jpg": i for i in range(1, 8)},
        **{f"{TV}/castle_frames/castle_s01_clip_01/{i:05d}.jpg": i for i in (1, 3)},
        f"{TV}/castle_frames/castle_s08e08_seg02_clip_14/00001.jpg": 1,
    },
    "cinepile_with_sub": {
        "data/train-00000-of-00001.parquet": [
            _scene("v0", "<subtitle> Hello. <subtitle> You! ", 4, 0),
            _scene("v1", "", 1),
            _scene("v2", None, 2),
            _scene("gone", "x", 2),
        ],
        **{f"videos/{name}/{name}.mp4": VIDEO for name in ("v0", "v1", "v2")},
    },
    "paxion": {
        "ssv2/antonyms/train_with_rel_path.json": [
            {
                "id": i,
                "rel_vid_path": f"{i % 3}.webm",
                "label": f"Opening {i}",
                "label_action_antonym_clip_text": f"Closing {i}",
            }
            for i in range(6)
        ],
        "ego4d/egoclip_subset_action_antonyms_train_val_test_split/train.jsonl": [
            _ego("u0", 0.5, 1.25, "#C C opens a box", "#C C closes a box"),
            _ego("u0", 1.25, 1.25, "#C C waits", "#C C runs"),
            _ego("703d550a-0a84-4bcf-9b45-e25c864ade70", 0.5, 1.25, "#C a", "#C b"),
            _ego("1348c9f9-fc8b-40c7-b1ab-5b6281e5d390", 978.617, 979.098, "#C a", "#C b"),
            _ego("u0", 0.5, 1.25, "c takes it", "c drops it"),
            _ego("u1", 0, 2.5, "# C stands", "#O sits"),
        ],
        **{f"sth-sth-v2/videos/{i}.webm": VIDEO for i in range(3)},
        "Ego4d/ego4d_data/v2/full_scale/u0.mp4": VIDEO,
        "paxion-ego4d-clips/u1_0.000_2.500.mp4": VIDEO,
    },
    "how2qa": {
        "how2QA_train_release.csv": [
            ["a_b", "[12.345:20]", "w0", "w1", "w2", "What, then?", "right"],
            ["a_b", "[12.345:20]", "w3", "w4", "w5", "Why?", "so"],
            ["a_b", "[20:20]", "w0", "w1", "w2", "Never?", "no"],
            ["none", "[1:2]", "w0", "w1", "w2", "Never?", "no"],
            ["Z1NEMNKgR9U", "[1:2]", "w0", "w1", "w2", "Never?", "no"],
            ["onGTfd-EKrs", "[89.15:89.44]", "w0", "w1", "w2", "Never?", "no"],
            ["onGTfd-EKrs", "[1:2.5]", "w0", "w1", "w2", "Where?", "here"],
        ],
        "video-clips/a_b_12.35_20.mp4": VIDEO,
        "video-clips/a_b_notes.txt": VIDEO,
        "video-clips/Z1NEMNKgR9U_1_2.mp4": VIDEO,
        "video-clips/onGTfd-EKrs_1_2.5.webm": VIDEO,
    },
}


def write(folder: Path, name: str) -> dict[str, int]:
    """Write the files of a set below a folder; the frames of each of its videos, of which no two have as many."""
    frames: dict[str, int] = {}
    for place, content in FILES[name].items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is VIDEO:
            frames[place] = SHORTEST + len(frames)
            content = film([125 * i for i in range(frames[place])])
        if path.suffix == ".parquet":
            datasets.Dataset.from_list(content).to_parquet(path)
        else:
            path.write_bytes(_encoded(path.suffix, content, "\t" if name == "tgif" else ","))
    return frames


def _encoded(suffix: str, content: Any, delimiter: str) -> bytes:
    if isinstance(content, bytes):
        return content
    if suffix == ".jpg":
        out = io.BytesIO()
        Image.fromarray(np.full((32, 48, 3), 20 * content, np.uint8)).save(out, "JPEG")
        return out.getvalue()
    if suffix == ".json":
        return json.dumps(content).encode()
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    if suffix == ".csv":
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=delimiter).writerows(content)
        return text.getvalue().encode()
    return content.encode()
