"""Benchmarks about videos and several pictures: from published files to questions, prompts without truths, scores."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import RandomState
from odd_rows import check_records, check_replies
from PIL import Image
from video_cases import CASES, COUNT, MASK, MME, PACKED, POINT, TRACK, write

from molmo_ds.config import PromptConfig
from molmo_ds.data import sources
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sample.review import Review
from molmo_ds.data.sources.fetching.rows import load_rows
from molmo_ds.data.sources.masks import runs_of, runs_of_coco
from molmo_ds.data.sources.source import Item
from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.metrics import temp_compass, video_choice
from molmo_ds.eval.metrics.pointing import inside
from molmo_ds.eval.metrics.tracks import Detections, hota
from molmo_ds.eval.metrics.video_places import read_count
from molmo_ds.eval.row import UNREADABLE, Row
from molmo_ds.eval.score import scored_row

SIZE = (3, 2)  # width, height of every picture here
BLINK = {"idx": "val_Counting_1", "sub_task": "Counting", "prompt": "How many?\n(A) 1\n(B) 2"}
BLINK |= {"choices": ["1", "2"], "image_1": "a.png", "image_2": "b.png", "answer": "(B)"}
MUIR = {"idx": "3", "task": "t", "image_relation": "r", "image_type": "i", "counterpart_idx": "4"}
MUIR |= {"question": "Which is <image>?", "options": ["<image>", "none"], "answer": "B"}
BENCH = {"category": "spatial", "image_filename": "a.png", "mask_filename": "m.png"}
BENCH |= {"user_input": "the cup"}
MUIR |= {"image_list": ["a.png", "b.png"]}


class Shards:
    """Stands for shards that hold items."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def record(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        known = {"annotations": item.annotations, "metadata": item.metadata, "sizes": [SIZE]}
        return {"__key__": f"key-{index}", "images": ["png"], **known}

    def parts(self, index: int) -> dict[str, bytes]:
        return {"png": b"the same picture"}


def items_of(source: str, rows: list, split: str) -> list[Item]:
    adapt = sources.get(source).adapt
    return list(itertools.chain.from_iterable(adapt(row, split) for row in rows))


def row_of(task: str, source: str, split: str, row: dict) -> Row:
    items = items_of(source, [row], split)
    [asked] = BENCHMARKS[task].rows(Shards(items), split)
    return asked


@pytest.mark.parametrize("case", CASES, ids=[f"{case[0]}" for case in CASES])
def test_from_the_published_files_to_a_score(case: tuple, tmp_path: Path) -> None:
    name, source, split, files, right, wrong, end = case
    task = BENCHMARKS[name]
    rows = list(load_rows(sources.get(source), split, write(tmp_path, source, files)))
    items = items_of(source, rows, split)
    found = {row.id: row for row in task.rows(Shards(items), split)}
    asked = found[f"{name}:{split}:{end}"]
    for item in items:  # the download keeps them
        Review().add({"annotations": item.annotations, "images": ["png"], "sizes": [SIZE]})
    hidden = {"answer", "answer_index", "masks", "point_groups", "tracks"}
    assert not set(asked.question()) & hidden
    config = PromptConfig(pointing_format="html-v2")
    [said] = PromptFormatter(config).messages(asked.question(), RandomState(0), inference=True)
    assert asked.annotation.get("question", "cat") in said
    truth = task.truth(asked)
    scores = [scored_row(task, asked, reply, "stop")["scores"] for reply in (right, truth, wrong)]
    assert [score[task.headline] for score in scores] == [1.0, 1.0, 0.0]
    assert scores[0][UNREADABLE] == scores[1][UNREADABLE] == 0.0
    assert scored_row(task, asked, "", "length")["scores"][task.headline] in (0.0, 1.0)
    check_replies(task, asked)
    check_records(task, asked)


def test_clips_subtitles_and_frames_reach_the_record(tmp_path: Path) -> None:
    [counted] = items_of("molmo2_video_count_eval", [COUNT], "val")
    assert counted.about == {"clip": [1.0, 5.0]}
    said = {name: case for name, *case in CASES if name.endswith("_w_subtitle")}
    for name, lines in (
        ("video_mme_w_subtitle", [[1.0, 2.0, "hello"]]),
        ("long_video_bench_w_subtitle", [[2.0, 3.0, "hello"]]),  # its clock begins at 10 s
    ):
        source, split, files, *_ = said[name]
        rows = load_rows(sources.get(source), split, write(tmp_path / name, source, files))
        [item] = items_of(source, list(rows), split)
        assert item.about == {"subtitles": lines}
        assert item.annotations[0]["style"] == "video_eval_multiple_choice_w_subtitle"
    frames = tmp_path / "video/tvqa/frames_fps3_hq/film"
    frames.mkdir(parents=True)
    for number in (10, 9):
        (frames / f"{number}.jpg").touch()
    question = {"video": "film", "question": "?", "candidates": ["x"], "answer": "x"}
    files = {"json/episodic_reasoning.json": [question | {"start": 0, "end": 1}]}
    rows = load_rows(sources.get("mvbench"), "validation", write(tmp_path, "mvbench", files))
    [item] = items_of("mvbench", list(rows), "validation")
    assert [Path(one.path).name for one in item.pictures] == ["9.jpg", "10.jpg"]
    assert item.about == {"fps": 3.0, "clip": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("source", "split", "files", "ids"),
    [
        (
            *("molmo2_video_count_eval", "val"),
            {"data/val.parquet": [COUNT, {**COUNT, "clip_start": 5.0, "clip_end": 9.0}]},
            ["v_cat", "v_cat_1"],
        ),
        (
            *("molmo2_video_point_eval", "val"),
            {"data/val.parquet": [POINT, POINT, {**POINT, "label": "dog"}]},
            ["v_cat", "v_cat_1", "v_dog"],
        ),
        (
            *("point_bench", "test"),
            {"data.json": [BENCH, {**BENCH, "user_input": "the other"}]},
            ["spatial/a.png", "spatial/a.png_1"],
        ),
    ],
)
def test_questions_that_are_about_the_same_have_ids_of_their_own(
    source: str, split: str, files: dict, ids: list[str], tmp_path: Path
) -> None:
    """These sets have no ids; two of one name stopped the evaluation."""
    masks = tmp_path / "selected_masks/spatial"
    masks.mkdir(parents=True)
    Image.new("L", (3, 2), 255).save(masks / "m.png")
    rows = list(load_rows(sources.get(source), split, write(tmp_path, source, files)))
    assert [item.metadata["example_id"] for item in items_of(source, rows, split)] == ids


def test_several_pictures() -> None:
    asked = row_of("blink", "blink", "validation", BLINK)
    task = BENCHMARKS["blink"]
    assert [task.score(reply, asked)["muir_bench_mc"] for reply in ("(B)", "A")] == [1.0, 0.0]
    hidden = row_of("blink", "blink", "test", {**BLINK, "answer": "hidden"})
    assert task.truth(hidden) is None
    asked = row_of("muir_bench", "muir_bench", "test", MUIR)
    assert asked.annotation["question"] == "Which is Image 1?"
    assert asked.annotation["options"] == ["Image 2", "none"]
    assert BENCHMARKS["muir_bench"].score("B", asked)["muir_bench_mc"] == 1.0


def test_every_point_must_lie_in_the_mask() -> None:
    mask = np.zeros((2, 3), bool)
    mask[1, 1:] = True
    annotation = {"style": "pointing", "question": "?", "masks": [runs_of(mask)]}
    row = Row(id="r", index=0, picture="p", annotation=annotation, size=SIZE)
    task = BENCHMARKS["point_bench"]
    assert task.truth(row) == "(83.3, 75.0)"  # the middle of pixel 2 of line 1
    right = task.truth(row)
    found = [task.score(reply, row) for reply in (right, right + " (10.0, 10.0)", "no idea")]
    assert [one["all"] for one in found] == [1.0, 0.0, 0.0]
    assert [one[UNREADABLE] for one in found] == [0.0, 0.0, 1.0]


def test_both_values_where_the_reference_leaves_replies_out() -> None:
    asked = row_of("video_mme", "video_mme", "validation", {**MME, "subtitles": None})
    parts = ("all", "long", "medium_long")
    found = BENCHMARKS["video_mme"].score("no idea", asked)
    assert found == dict.fromkeys(parts, 0.0) | {UNREADABLE: 1.0}
    found = BENCHMARKS["video_mme"].score("B", asked)
    assert found == dict.fromkeys([*parts, *(f"{part}_reference" for part in parts)], 1.0) | {
        UNREADABLE: 0.0
    }
    impossible = {"question": "?", "options": "A: cat", "output": "G", "task": "t", "number": 0}
    impossible["input_image_path"] = ["./x/a.png"]
    asked = row_of("mmiu", "mmiu", "test", impossible)
    assert BENCHMARKS["mmiu"].score("G", asked) == {"all_reference": 0.0, UNREADABLE: 1.0}


def test_captions_of_temp_compass_are_left_to_a_judge() -> None:
    row = {"task": "captioning", "number": 0, "video_id": "7", "dim": "speed", "answer": "fast"}
    row |= {"question": "Say it.", "mc_question": "?", "mc_answer": "A. x"}
    asked = row_of("temp_compass", "temp_compass", "validation", row)
    assert BENCHMARKS["temp_compass"].score("It is fast.", asked) == {}


def test_masks_of_coco() -> None:
    for published in (MASK, PACKED):
        mask = runs_of_coco(published)
        seen = [[inside((x, y), mask) for x in range(3)] for y in range(2)]
        assert seen == [[False, True, False], [False, True, False]]
    # 5 bits a digit, the lowest first: 40 = 8 + 32, then differences to the last but one: 37 + 3, 3 + 40
    runs = runs_of_coco({"size": [1, 166], "counts": "X1" + "3" + "X1" + "U1" + "3"})["runs"]
    assert runs == [40, 3, 40, 40, 43]
    with pytest.raises(ValueError, match=r"^The runs of a mask of 3 x 2 do not add up .*\.$"):
        runs_of_coco({"size": [2, 3], "counts": [5]})


def test_hota_of_two_objects_that_change_names() -> None:
    """Luiten's definitions by hand: 4 frames, two objects, the found names swap behind the second frame."""
    straight = Detections(["a", "b"], ["1", "2"], [[True, False], [False, True]])
    swapped = Detections(["a", "b"], ["1", "2"], [[False, True], [True, False]])
    found = hota([straight, straight, swapped, swapped])
    # every pair is matched twice: 2 / (4 + 4 - 2)
    assert found == pytest.approx({"HOTA": (1 / 3) ** 0.5, "DetA": 1.0, "AssA": 1 / 3})
    missed = Detections(["a"], ["1"], [[False]])
    found = hota([Detections(["a"], ["1"], [[True]]), missed])
    # one hit of two true and two found; together 1 / (2 + 2 - 1)
    assert found == pytest.approx({"HOTA": 1 / 3, "DetA": 1 / 3, "AssA": 1 / 3})
    assert hota([]) == {"HOTA": 1.0, "DetA": 1.0, "AssA": 1.0}
    assert hota([Detections(["a"], [], [[]])])["HOTA"] == 0.0


def test_tracks_are_compared_frame_by_frame() -> None:
    asked = row_of("molmo2_video_track_eval_1fps", "molmo2_video_track_eval", "test", TRACK)
    assert [moment["time"] for moment in asked.annotation["tracks"]] == [0.0, 1.0]
    reply = '<tracks coords="0.0 1 333 500 2 000 000;3.0 1 333 500">the cat</tracks>'
    found = BENCHMARKS["molmo2_video_track_eval_1fps"].score(reply, asked)
    # frames 0 (two found, one right), 2 (nothing found), 6 (nothing to find)
    assert found["precision"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert found["recall"] == pytest.approx((1 + 0 + 0) / 3)
    assert found["f1"] == pytest.approx((2 / 3) / 3)
    assert found["DetA"] == pytest.approx(1 / (2 + 3 - 1))


@pytest.mark.parametrize(
    ("reply", "count"),
    [("7", 7), ("A total of 12.", 12), ('The total number of "cats" is: 3.', 3), ("none", 0)]
    + [("There are none.", 0), ("many", None), ("3 or 4", None)],
)
def test_a_count_is_read(reply: str, count: int | None) -> None:
    assert read_count(reply) == count


NAMES = ["a dog runs", "a cat sleeps", "a man sits", "the cat", "it rains"]


@pytest.mark.parametrize(
    ("benchmark", "reply", "letter"),
    [
        ("video_mme", "Each shows C", "C"),  # which has four options
        ("perception_test", "E or B", "B"),
        ("long_video_bench", "Best answer: C", "C"),
        ("ego_schema", "a C)", None),  # a bracket alone is no name
        ("ego_schema", "C) e answer E.", "E"),
        ("ego_schema", "it may be that the cat sleeps or it rains", "D"),
        ("nextqa", "B. a cat", "B"),
        ("muir_bench", "B: a cat", "B"),
        ("muir_bench", "B. a cat", None),
    ],
)
def test_letters_as_the_reference_reads_them(benchmark: str, reply: str, letter: str | None):
    """Results of mattw-ai2/robo_mm_olmo_gantry 6832f80, olmo/eval/vqa.py and evaluators.py; None = it draws one."""
    assert video_choice.READERS[benchmark](reply, NAMES) == letter


def test_a_caption_with_a_full_stop_more_is_not_that_caption():
    question = "Which?\nCaption A: a dog runs\nCaption B: a cat sits"
    read = [("a dog runs", True), ("a dog runs.", None), ("A.", True), ("(A) a dog runs", True)]
    for reply, right in read:
        assert temp_compass.caption(reply, "Caption A: a dog runs", question) is right


CAPTIONS = "Which?\nCaption A: a dog runs\nCaption B: a dog sits."
FOUR = "What?\nA. a dog\nB. a cat\nC. B"
TEMP_COMPASS = {  # task -> (question, answer, replies that are right, replies that are not)
    "multi-choice": (
        FOUR,
        "B. a cat",
        ["B", "B.", "B)", "B. a cat", "B. a dog", "B) nonsense", "B.C", "B.\nA", "\u00a0B\u00a0"],
        [
            "(B)",
            "b",
            "b.",
            "B: a cat",
            "B a cat",
            "a cat",
            "A",
            "Answer: B",
            "",
            "\u200bB",
            "\uff22",
            "**B**",
            "BB",
            "C",
        ],
    ),
    "yes_no": (
        "Is it?",
        "no",
        ["no", "No.", "NO", "not at all", "nothing", "Nope, yes", "None", "\nno"],
        ["yes", "Yes, no", "yesterday", "n", "", "\u201cno\u201d", "\uff4e\uff4f", "I say no"],
    ),
    "caption_matching": (
        CAPTIONS,
        "Caption B: a dog sits.",
        [
            "B",
            "B.",
            "Caption B",
            "Caption B.",
            "Caption B: a dog sits.",
            "a dog sits.",
            "x) a dog sits.",
            "(B) a dog sits.",
        ],
        [
            "(B)",
            "b",
            "caption B",
            "a dog sits",
            "B) a dog sits. y",
            "B: a dog sits.",
            "B. a dog sits.",
            "A",
            "Option B",
            "",
        ],
    ),
}


@pytest.mark.parametrize("task", TEMP_COMPASS)
def test_temp_compass_as_the_reference_scores_it(task: str) -> None:
    """What mattw-ai2/robo_mm_olmo_gantry 6832f80 made of them, olmo/eval/temp_compass_utils.py, without its judge."""
    question, answer, right, wrong = TEMP_COMPASS[task]
    known = {"task": task, "question": question, "temporal_aspect": "speed"}
    row = Row(id="q", index=0, picture="p", annotation={"answer": answer}, metadata=known)
    for reply in right + wrong:
        scores = temp_compass.score_temp_compass(reply, row)
        assert scores["all"] == scores[task] == scores[f"{task}_speed"] == (reply in right), reply


def test_a_caption_with_a_colon_is_its_whole_text() -> None:
    """The reference knows it up to its second colon only, so that the caption itself is wrong there."""
    question = "Which?\nCaption A: then: he runs\nCaption B: he sits"
    for reply in ("then: he runs", "A) then: he runs", "Caption A: then: he runs", "A"):
        assert temp_compass.caption(reply, "Caption A: then: he runs", question) is True


def test_fgqa_as_the_reference_scores_it() -> None:
    """mattw-ai2/robo_mm_olmo_gantry 6832f80, olmo/eval/evaluators.py, PlmFGQAEval: the first letter, case ignored."""
    right = ["B", "b", "B.", "B) a dog", " B", "\u00a0B. x", "bird", "B\nA", "b)"]
    wrong = ["A", "(B)", "", "Answer: B", "\uff22", "\u200bB", "a B", "**B**"]
    for given in ({"answer": "B"}, {"answer": " B) x"}, {"answer_index": 1, "options": ["x", "y"]}):
        row = Row(id="q", index=0, picture="p", annotation=given, metadata={"group": 1})
        for reply in right + wrong:
            assert video_choice.score_fgqa(reply, row)["accuracy"] == (reply in right), reply
