"""Published files of benchmarks about videos and several pictures, a question each, with a right and a wrong reply."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MASK = {"size": [2, 3], "counts": [2, 2, 2]}  # height, width; the middle column, pixels 1 0 and 1 1
PACKED = {"size": [2, 3], "counts": "222"}  # the same in COCO's text
COLUMNS = [f"a{number}" for number in range(5)]
TEMP = {"video_id": "7", "dim": "speed"}
MOTION = {"video_path": "m.mp4", "key": "k", "question_type": "Motion", "video_type": "film"}
MME = {
    "question_id": "001-1",
    "videoID": "v",
    "duration": "long",
    "domain": "Life",
    "sub_category": "Food",
    "task_type": "OCR",
    "question": "Which?",
    "options": ["A. cat", "B. dog"],
    "answer": "B",
}
SUBTITLES = {"v": {"0": {"start": 1.0, "end": 2.0, "text": "hello"}}}
LONG = {
    "id": "v_0",
    "video_id": "v",
    "video_path": "v.mp4",
    "question": "Which?",
    "candidates": ["cat", "dog"],
    "correct_choice": 1,
    "level": "L1",
    "question_category": "S2E",
    "duration_group": 60,
    "duration": 40.0,
    "subtitle_path": "v.json",
    "starting_timestamp_for_subtitles": 10.0,
}
SPOKEN = [{"timestamp": [12.0, 13.0], "text": "hello"}, {"timestamp": [1.0, 2.0], "text": "before"}]
PRO = {"source": "s", "qa_type": "q", "qa_subtype": "u", "answer_text": "dog", "video": "v.mp4"}
MLVU = {"video": "v.mp4", "question": "?", "duration": 9.0}
COUNT = {
    "video_id": "v",
    "label": "cat",
    "question": "How many cats are there?",
    "count": 12,
    "category": "animal",
    "clip_start": 1.0,
    "clip_end": 5.0,
}
POINT = {
    "video_id": "v",
    "label": "cat",
    "two_fps_timestamps": [1.5],
    "points": [{"x": 1.0, "y": 1.0}],
    "masks": [[{"frame_id": 3, "rle": MASK}]],
    "video_duration": 10.0,
    "width": 3,
    "height": 2,
}
TRACK = {
    "id": "t1",
    "exp": "the cat",
    "fps": 2,
    "mask_id": ["7"],
    "points": [{"object_id": "7", "points": [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]}],
    "masks": [{"object_id": "7", "masks": [PACKED, PACKED, PACKED]}],
    "w": 3,
    "h": 2,
    "clip": "c",
    "video_dataset": "sav",
}
EXPRESSION = {
    "id": "e1",
    "video": "v",
    "qid": 4,
    "expression": "the cat",
    "fps": 6,
    "sampling_fps": 1,
    "mask_id": ["9"],
    "width": 3,
    "height": 2,
    "frame_trajectories": [
        {"frame": 6, "time": 1.0, "points": [{"id": "9", "point": [1.0, 1.0], "occluded": False}]}
    ],
}
GOOD_TRACK = '<tracks coords="0.0 1 333 500;1.0 1 333 000">the cat</tracks>'
FGQA = {
    "uid": "u1",
    "qa_uid": "g1",
    "video": "v.mp4",
    "question": "Which hand?",
    "options": {"option_0": "right", "option_1": "left"},
    "answer": "left",
    "answer_index": 1,
    "metadata": {"source_dataset": "coin", "source_video_id": "s"},
}
# task, data set, split, files, a right reply, a wrong one, the id's end
CASES = (
    (
        *("mvbench", "mvbench", "validation"),
        {
            "json/action_count.json": [
                {"video": "v.mp4", "question": "?", "candidates": ["1", "2"], "answer": "2"}
            ]
        },
        *("b) 2", "A", "action_count_0"),
    ),
    (
        *("temp_compass", "temp_compass", "validation"),
        {"multi-choice": [{**TEMP, "question": "?\nA. up\nB. down", "answer": "B. down"}]},
        *("B) down", "A. down", "multi-choice_0"),
    ),
    (
        *("temp_compass_yes_no", "temp_compass", "validation"),
        {"yes_no": [{**TEMP, "question": "Up?", "answer": "no"}]},
        *("No, it is not.", "yes", "yes_no_0"),
    ),
    (
        *("temp_compass_internal", "temp_compass", "validation"),
        {
            "caption_matching": [
                {
                    **TEMP,
                    "question": "?\nCaption A: up\nCaption B: down",
                    "answer": "Caption B: down",
                }
            ]
        },
        *("B.", "Caption A: up", "caption_matching_0"),
    ),
    (
        *("perception_test", "perception_test", "validation"),
        {
            "mc_question_val/validation-00000-of-00001.parquet": [
                {
                    "video_name": "v",
                    "question_id": 3,
                    "question": "?",
                    "options": ["x", "y", "z"],
                    "answer_id": 2,
                    "area": "physics",
                }
            ]
        },
        *("It is C.", "none", "v_3"),
    ),
    (
        *("ego_schema", "ego_schema", "validation"),
        {
            "Subset/test-00000-of-00001.parquet": [
                {
                    "question_idx": 5,
                    "video_idx": "v",
                    "question": "?",
                    "option": [f"{letter}. x" for letter in "ABCDE"],
                    "answer": "4",
                }
            ]
        },
        *("E", "D", "5_v"),
    ),
    (
        *("nextqa_mc", "nextqa_mc", "test"),
        {
            "MC/test-00000-of-00001.parquet": [
                {"video": 8, "qid": 2, "type": "CW", "question": "why", "answer": 3}
                | dict.fromkeys(COLUMNS, "because")
            ]
        },
        *("(D)", "(E)", "8_2_type_CW"),
    ),
    (
        *("plm_fgqa", "plm_fgqa", "validation"),
        {"fgqa/plm_fgqa_test.jsonl": [FGQA]},
        *("b. left", "Answer: B", "u1"),
    ),
    (
        *("tomato", "tomato", "test"),
        {
            "data/count.json": {
                "1": {
                    "question": "?",
                    "options": ["1", "2"],
                    "answer": 1,
                    "demonstration_type": "human",
                    "key": "k",
                }
            }
        },
        *("B", "A", "count_1"),
    ),
    (
        *("motionbench", "motionbench", "validation"),
        {
            "video_info.meta.jsonl": [
                {
                    **MOTION,
                    "qa": [
                        {"uid": "1", "question": "?\nA. up\nB. down", "answer": "B"},
                        {"uid": "2", "question": "?", "answer": "NA"},
                    ],
                }
            ]
        },
        *("B. down", "A", "1_k"),
    ),
    (
        *("video_mme", "video_mme", "validation"),
        {"videomme/test-00000-of-00001.parquet": [MME]},
        *("Answer: B", "none", "001-1"),
    ),
    (
        *("video_mme_w_subtitle", "video_mme_w_subtitle", "validation"),
        {"videomme/test-00000-of-00001.parquet": [MME], "subtitles.json": SUBTITLES},
        *("B", "A", "001-1"),
    ),
    (
        *("mlvu_mc", "mlvu_mc", "validation"),
        {"json/4_count.json": [{**MLVU, "candidates": ["1", "2"], "answer": "1"}]},
        *("A. 1", "2", "count_0"),
    ),
    (
        *(
            "long_video_bench_no_subtitle",
            "long_video_bench",
            "validation",
            {"lvb_val.json": [LONG]},
        ),
        *("B", "C", "v_0"),
    ),
    (
        *("long_video_bench_w_subtitle", "long_video_bench_w_subtitle", "validation"),
        {"lvb_val.json": [LONG], "subtitles/v.json": SPOKEN},
        *("B", "C", "v_0"),
    ),
    (
        *("lvbench", "lvbench", "test"),
        {
            "video_info.meta.jsonl": [
                {
                    "key": "v",
                    "type": "cartoon",
                    "qa": [
                        {
                            "uid": "9",
                            "question": "Who?\n(A) a cat\n(B) a dog",
                            "answer": "B",
                            "question_type": ["reasoning", "entity recognition"],
                            "time_reference": "",
                        }
                    ],
                }
            ]
        },
        *("b", "a dog", "9"),
    ),
    (
        *("video_eval_pro_mc", "video_eval_pro_mc", "test"),
        {
            "data/test-00000-of-00001.parquet": [
                {**PRO, "question": "?", "options": ["A. cat", "B. dog"], "answer": "B"}
            ]
        },
        *("B. dog", "A", "0_v.mp4"),
    ),
    (
        *("mmiu", "mmiu", "test"),
        {
            "data.parquet": [
                {
                    "question": "?",
                    "options": "A: cat\nB: dog",
                    "output": "B",
                    "task": "t",
                    "input_image_path": ["./2D-spatial/a.png", "./2D-spatial/b.png"],
                }
            ]
        },
        *("(B)", "A", "0"),
    ),
    (
        *(
            "vixmo_points_count_clip_63s",
            "molmo2_video_count_eval",
            "val",
            {"data.parquet": [COUNT]},
        ),
        *("Counting shows a total of 12.", "11", "v_cat"),
    ),
    (
        *("vixmo_points_point_eval", "molmo2_video_point_eval", "val", {"data.parquet": [POINT]}),
        *('<points coords="1.5 1 333 500">cat</points>',),
        *('<points coords="2.0 1 333 500">cat</points>', "v_cat"),
    ),
    (
        *("molmo2_video_track_eval_1fps", "molmo2_video_track_eval", "test"),
        {"data.parquet": [TRACK]},
        *(GOOD_TRACK, GOOD_TRACK.replace("333", "000"), "t1"),
    ),
    (
        *("mevis_track_eval_1fps", "mevis_track_eval", "test"),
        {
            "data.parquet": [EXPRESSION, {**EXPRESSION, "id": "e2", "sampling_fps": 2}],
            "MasksRLE/v/4.json": {"0": [None] * 6 + [PACKED]},
        },
        *('<tracks coords="1.0 1 333 500">the cat</tracks>', "No tracks available.", "e1"),
    ),
)


def write(folder: Path, source: str, files: dict[str, Any]) -> Path:
    """The files of a case, as the hub or the set's own page has them, and those that must be there but are empty."""
    if source == "temp_compass":
        nothing = [{**TEMP, "question": "x", "answer": "y"}]
        wanted = dict.fromkeys(
            ("multi-choice", "yes_no", "caption_matching", "captioning"), nothing
        )
        files = {
            f"{task}/test-00000-of-00001.parquet": rows for task, rows in (wanted | files).items()
        }
    for name, rows in (empty_parts(source) | files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            path.write_text(json.dumps(rows))
    return folder


def empty_parts(source: str) -> dict[str, Any]:
    """The files of a set of many parts, without a question."""
    from molmo_ds.data.sources.videos import long_videos, short_videos

    if source == "mvbench":
        return {f"json/{part}.json": [] for part in short_videos.MVBENCH}
    if source == "tomato":
        return {f"data/{kind}.json": {} for kind in short_videos.TOMATO}
    if source == "mlvu_mc":
        return {f"json/{n}_{kind}.json": [] for n, kind in enumerate(long_videos.MLVU, start=1)}
    return {}
