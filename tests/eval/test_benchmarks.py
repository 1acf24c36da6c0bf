"""Every benchmark on a row of its data set: from the published columns to rows with stable ids, and their scores."""

import itertools
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from odd_rows import check_records, check_replies
from video_cases import CASES as VIDEO_CASES

from molmo_ds.data import sources
from molmo_ds.eval.benchmarks import BENCHMARKS, FILES
from molmo_ds.eval.row import UNREADABLE, Row
from molmo_ds.eval.score import scored_row
from molmo_ds.eval.set_table import SETS
from molmo_ds.eval.sets import resolve
from molmo_ds.eval.submit import FORMS
from molmo_ds.eval.task import MODELS, Task

# by download.py --hold-out
HELD_OUT = {"pixmo_cap-validation", "pixmo_ask_model_anything-validation"}
OWN = {"dense_caption_eval-test"}  # of the user's making
ANSWERS = [{"answer": "two", "raw_answer": "two"}] * 10
COCO = {
    "image_id": 9,
    "question_id": 90,
    "question": "How many?",
    "image": "a.jpg",
    "answers": ANSWERS,
}
CHOICE = {"question": "Which?", "choices": ["cat", "dog"], "image": "a.jpg"}
A_OKVQA = {**CHOICE, "question_id": "q1", "correct_choice_idx": 1, "direct_answers": ["dog"] * 10}
A_OKVQA |= {"difficult_direct_answer": False}
EXAM = {"question": "?", "image_1": "a.jpg", "question_type": "multiple-choice"}
VISTA = {
    "question": "Hint: x\nQuestion: How long?",
    "decoded_image": "a.jpg",
    "pid": "5",
    "answer_type": "text",
}
SCREEN = {
    "screenshots": [b"p"],
    "screenshot_widths": [100],
    "screenshot_heights": [100],
    "episode_id": [3],
}
SCREEN |= {"goal": "Go", "step_instructions": ["Tap"], "accessibility_trees": [b""]}
SCREEN |= {"actions": ['{"action_type": "click", "x": 50, "y": 40}']}
CLOCK = {
    "example_id": "e",
    "time_format": "",
    "shows_seconds": False,
    "hour_visible": 3,
    "minute_visible": 7,
}
CLOCK |= {"second_visible": -1}
POINTS = {
    "image_url": "u",
    "label": "cat",
    "points": [{"x": 50, "y": 50}],
    "masks": [[[True, True], [True, True]]],
}
DIAGRAM = {
    "question": "?",
    "answerTexts": ["A", "B"],
    "correctAnswer": 1,
    "abcLabel": True,
    "questionId": "d1",
}
DIAGRAM |= {"image_id": 4, "imageName": "4.png"}
DIAGRAM |= {
    "annotation": {"text": {k: {"replacementText": k, "rectangle": [[0, 0], [2, 2]]} for k in "AB"}}
}
HUMAN = {"query": "?", "label": ["12"], "image": "a.jpg", "human_or_machine": 0}
DOCUMENT = {"question": "?", "answers": ["Hill", "Mr. Hill"], "questionId": 11, "image": "a.jpg"}
DOCUMENT |= {"image_local_name": "a.jpg", "question_id": 11, "file_path": "a.jpg"}
READING = {
    "question_id": 7,
    "image_id": "i",
    "question": "?",
    "answers": ["stop"] * 10,
    "image": "a.jpg",
}
READING |= {"flickr_300k_url": "u"}
CASES = (  # task, data set, split, row, a right reply, a wrong one, the id's end
    ("coco_2014_vqa", "vqa2", "validation", COCO, "2", "3", "90"),
    ("okvqa", "okvqa", "validation", COCO, "Two", "three", "90"),
    ("text_vqa", "text_vqa", "validation", READING, "STOP", "go", "7"),
    ("chart_qa", "chart_qa", "test", HUMAN, "12.3", "14", "key-0"),
    ("doc_qa", "doc_qa", "validation", DOCUMENT, "hill", "dale", "11"),
    ("info_qa", "info_qa", "validation", DOCUMENT, "hill", "dale", "11"),
    ("st_qa", "st_qa", "validation", DOCUMENT, "hill", "dale", "11"),
    (
        "science_qa_img",
        "science_qa",
        "validation",
        {**CHOICE, "hint": "", "answer": 1},
        "B",
        "A",
        "key-0",
    ),
    ("a_okvqa_mc", "a_okvqa_mc", "validation", A_OKVQA, "B", "A", "q1"),
    ("a_okvqa_da", "a_okvqa_da", "validation", A_OKVQA, "dog", "cat", "q1"),
    ("ai2_diagram_v2_mix_transparent", "ai2d", "test", DIAGRAM, "b", "A", "d1-transparent"),
    (
        "mmmu_test",
        "mmmu",
        "validation",
        {**EXAM, "id": "validation_Art_1", "options": "['x', 'y']", "answer": "B"},
    )
    + ("(B)", "A", "validation_Art_1"),
    (
        "mmmu_test",
        "mmmu",
        "validation",
        {**EXAM, "id": "validation_Art_2", "question_type": "open", "answer": "['7', '8']"},
    )
    + ("so 8", "9", "validation_Art_2"),
    ("math_vista_v2", "math_vista", "validation")
    + (
        {
            **VISTA,
            "question_type": "multi_choice",
            "choices": ["2", "5"],
            "answer": "5",
            "precision": None,
        },
        "B",
        "A",
        "5",
    ),
    ("math_vista_v2", "math_vista", "validation")
    + (
        {
            **VISTA,
            "question_type": "free_form",
            "choices": None,
            "answer": "1.3",
            "precision": 1.0,
            "answer_type": "float",
        },
    )
    + ("1.26", "1.4", "5"),
    (
        "real_world_qa_no_instruction",
        "real_world_qa",
        "test",
        {"image": "a.jpg", "question": "A or B?", "answer": "B"},
    )
    + ("B", "A", "key-0"),
    (
        "countbench_qa",
        "count_bench_qa",
        "huggingface",
        {"image": "a.jpg", "question": "?", "number": 4},
    )
    + ("a total of 4", "5", "key-0"),
    (
        "pixmo_count_counting",
        "pixmo_count_counting",
        "test",
        {"image_url": "u", "label": "cat", "count": 3, "points": []},
    )
    + ("3", "none", "key-0"),
    ("pointing_eval", "pixmo_points_eval", "test", POINTS)
    + ('<point x="50.0" y="50.0" alt="cat">cat</point>', "There are none.", "key-0"),
    (
        "android_control_ll",
        "android_control",
        "test",
        SCREEN,
        "Click(50.0, 40.0)",
        "Click(70.0, 40.0)",
        "3-0",
    ),
    (
        "android_control_hl_cot",
        "android_control",
        "test",
        SCREEN,
        "Plan: Tap Action: Click(50.0, 40.0)",
        "Wait",
        "3-0",
    ),
    (
        "pixmo_clocks",
        "pixmo_clocks",
        "validation",
        {**CLOCK, "text": "It is 3:07 PM"},
        "3:09 PM",
        "3:07 AM",
        "e",
    ),
    (
        "clock_bench",
        "clock_bench",
        "coco",
        {"image": "a.jpg", "img_id": "7", "hour": "12", "minute": "0"},
    )
    + ("11:59", "11:58", "key-0"),
    (
        "gqa",
        "gqa",
        "testdev",
        {"imageId": "n", "question_id": "02", "question": "?", "answer": "no", "image": "a.jpg"},
    )
    + ("No", "yes", "02"),
    ("tally_qa", "tally_qa", "test", {**COCO, "answer": 3, "issimple": False}, "3", "4", "90"),
)


class Records:
    """Stands for shards: the items that a data set makes of rows."""

    def __init__(self, source: str, split: str, rows: list[dict[str, Any]]):
        adapt = sources.get(source).adapt
        items = itertools.chain.from_iterable(adapt(row, split) for row in rows)
        self.records = [
            {
                "annotations": item.annotations,
                "metadata": item.metadata,
                "images": ["png"],
                "sizes": [(2, 2)],
            }
            for item in items
        ]

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> dict[str, Any]:
        return {**self.records[index], "__key__": f"key-{index}"}

    def parts(self, index: int) -> dict[str, bytes]:
        return {"png": b"the same picture"}


def their_split(task: Task, split: str) -> str:
    return task.splits[split].shards.rpartition("-")[2]


@pytest.mark.parametrize(
    ("name", "source", "split", "row", "right", "wrong", "end"),
    CASES,
    ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)],
)
def test_from_the_published_columns_to_a_score(
    name: str, source: str, split: str, row: dict, right: str, wrong: str, end: str
):
    task = BENCHMARKS[name]
    rows = list(task.rows(Records(source, their_split(task, split), [row]), split))
    assert len(rows) == (2 if source == "ai2d" else 1)
    asked = rows[-1]
    assert asked.id == f"{name}:{split}:{end}"
    assert not set(asked.question()) & {"answer", "answers", "answer_index", "points", "masks"}
    scored = scored_row(task, asked, right, "stop")
    assert scored["scores"][task.headline] == 1.0, scored
    assert scored["scores"][UNREADABLE] == 0.0
    assert scored["truth"]
    assert scored_row(task, asked, wrong, "stop")["scores"][task.headline] == 0.0
    assert scored_row(task, asked, task.truth(asked), "stop")["scores"][task.headline] == 1.0
    assert scored_row(task, asked, "", "length")["scores"][task.headline] in (0.0, 1.0)
    check_replies(task, asked)
    check_records(task, asked)


def test_every_case_is_there():
    asked = {case[0] for case in (*CASES, *VIDEO_CASES)}
    # tests/eval/test_by_style.py
    others = {name for name, task in BENCHMARKS.items() if not task.splits}
    others |= {"vqa_v2_test", "android_control_hl", "android_control_hl_ll"}  # as their siblings
    others |= {
        "dense_caption_eval",
        "pixmo_cap",
        "user_qa",
        "mlvu_gen",
        "molmo2_cap_eval",
    }  # no rule scores them
    others |= {
        "muir_bench",
        "blink",
        "point_bench",
        "chart_qa_exp",
    }  # test_video_benchmarks.py, as chart_qa
    others |= {"temp_compass_captioning", "temp_compass_caption_matching"}  # parts of temp_compass
    others |= {"temp_compass_multi-choice", "long_video_bench"}
    others |= {f"video_mme_{length}" for length in ("short", "medium", "long")}
    others |= {f"{name}_track_eval_1fps" for name in ("ref_yt_vos", "ref_davis17", "reasonvos")}
    assert asked | others == set(BENCHMARKS)


def test_both_values_where_the_reference_s_rule_is_not_the_official_one():
    def both(name: str, row: dict, reply: str) -> dict[str, float]:
        source, split = next((case[1], case[2]) for case in CASES if case[0] == name)
        [asked] = BENCHMARKS[name].rows(Records(source, split, [row]), split)
        return BENCHMARKS[name].score(reply, asked)

    found = both("text_vqa", {**READING, "answers": ["stop"] * 3 + ["go"] * 7}, "stop")
    assert (found["vqa_score"], round(found["vqa_official"], 9)) == (1.0, 0.9)
    found = both(
        "mmmu_test", {**EXAM, "id": "v_A_2", "question_type": "open", "answer": "['7', '8']"}, "8"
    )
    assert (found["mmmu_score"], found["mmmu_score_reference"]) == (1.0, 0.0)
    free = {
        **VISTA,
        "question_type": "free_form",
        "choices": None,
        "answer": "1.3",
        "answer_type": "float",
    }
    found = both("math_vista_v2", {**free, "precision": 1.0}, "1.3")
    assert (found["score"], found["score_reference"]) == (1.0, 0.0)


def test_a_chart_counts_in_its_part_and_a_diagram_in_its_kind():
    [row] = BENCHMARKS["chart_qa"].rows(Records("chart_qa", "test", [HUMAN]), "test")
    found = BENCHMARKS["chart_qa"].score("12", row)
    assert (
        found["relaxed_correctness_human"]
        == found["scifi_relaxed_correctness_human"]
        == found["em_human"]
        == 1.0
    )
    assert "em_aug" not in found
    task = BENCHMARKS["ai2_diagram_v2_mix_transparent"]
    opaque, transparent = task.rows(Records("ai2d", "test", [DIAGRAM]), "test")

    def kinds(row: Row) -> set[str]:
        names = set(task.score("A", row)) - {UNREADABLE}
        assert names == {
            *names,
            *(f"{name.removesuffix('_reference')}_reference" for name in names),
        }
        return {name for name in names if not name.endswith("_reference")}

    assert kinds(opaque) == {"mc_ai2d_opaque"}
    assert kinds(transparent) == {"mc_ai2d_transparent"}
    assert transparent.id.endswith(":d1-transparent")
    plain = Row(
        id="", index=0, picture="", annotation=opaque.annotation, metadata={"abc_label": False}
    )
    assert kinds(plain) == {"mc_ai2d_opaque", "mc_ai2d_transparent"}


def test_an_unreadable_choice_is_drawn_by_the_question():
    rows = [
        {**EXAM, "id": f"validation_Art_{i}", "options": "['x', 'y']", "answer": "B"}
        for i in range(40)
    ]
    task = BENCHMARKS["mmmu_test"]
    asked = list(task.rows(Records("mmmu", "validation", rows), "validation"))
    drawn = [task.score("no idea", row)["mmmu_score"] for row in asked]
    assert drawn == [task.score("no idea", row)["mmmu_score"] for row in asked]
    assert 8 < sum(drawn) < 32  # 20 expected, deviation 3.2
    assert all(task.score("no idea", row)[UNREADABLE] for row in asked)


def test_two_questions_of_one_name_are_refused():
    with pytest.raises(
        ValueError, match=r"^Two questions of text_vqa:validation are called 7; .*\.$"
    ):
        list(
            BENCHMARKS["text_vqa"].rows(
                Records("text_vqa", "validation", [READING, READING]), "validation"
            )
        )


def test_an_id_that_is_null_is_none():
    columns = {"imageId": "n", "question_id": None, "question": "?", "image": "a.jpg"}
    [asked] = BENCHMARKS["gqa"].rows(Records("gqa", "testdev", [columns]), "testdev")
    assert asked.id == "gqa:testdev:key-0"


def test_a_limit_counts_questions():
    task = BENCHMARKS["android_control_hl"]
    rows = [{**SCREEN, "episode_id": [i]} for i in range(5)]
    found = list(task.rows(Records("android_control", "test", rows), "test", limit=3))
    assert [row.id for row in found] == [f"android_control_hl:test:{i}-0" for i in range(3)]
    assert len({row.picture for row in found}) == 1  # equal bytes are one picture


def test_an_annotation_of_many_in_one_record_has_its_number():
    records = Records("pixmo_ask_model_anything", "train", [])
    asked = [{"style": "user_qa", "question": str(i), "answer": "x"} for i in range(2)]
    records.records = [
        {"annotations": asked, "metadata": {"image_url": "u"}, "images": [], "sizes": []}
    ]
    found = list(BENCHMARKS["user_qa"].rows(records, "validation"))
    assert [row.id for row in found] == ["user_qa:validation:key-0#0", "user_qa:validation:key-0#1"]
    assert scored_row(BENCHMARKS["user_qa"], found[0], "hi", "stop")["scores"] == {}


def test_splits_lie_where_the_download_puts_them():
    for task in BENCHMARKS.values():
        for split in task.splits.values():
            name, _, theirs = split.shards.rpartition("-")
            known = name in sources.ALL and theirs in sources.ALL[name].splits
            assert known or split.shards in HELD_OUT | OWN, split.shards


def test_the_page_on_adding_a_benchmark_adds_one():
    page = (Path(__file__).parents[2] / "docs/architecture/add-a-benchmark.md").read_text()
    code = re.search(r"^    ```python\n(.*?)^    ```", page, re.S | re.M)[1]
    module: dict[str, Any] = {}
    exec(textwrap.dedent(code), module)
    [task] = module["TASKS"]
    assert task.name not in BENCHMARKS
    columns = {"image": "bar.png", "question": "How many bars?", "answer": "3", "question_id": 5}
    [row] = task.rows(Records("dv_qa", "validation_easy", [columns]), "easy")
    assert (row.id, row.picture) == ("dv_qa:easy:key-0", "bar.png")
    assert [task.score(reply, row)["em"] for reply in ("3", "4")] == [1.0, 0.0]
    assert all(
        split.shards.removeprefix("dv_qa-") in sources.ALL["dv_qa"].splits
        for split in task.splits.values()
    )


def test_the_table_is_whole():
    assert len(BENCHMARKS) == sum(len(file.TASKS) for file in FILES)
    names = [name for task in BENCHMARKS.values() for name in (task.name, *task.aliases)]
    assert len(set(names) | set(SETS)) == len(names) + len(SETS)
    for task in BENCHMARKS.values():
        assert task.submission in ("", *FORMS)
        assert task.max_new_tokens > 0 and task.crops in (None, 36)


def test_the_paper_s_eleven():
    eleven = [task for task, _ in resolve("paper")]
    assert [task.crops for task in eleven] == [36] * 9 + [None] * 2
    assert all(
        len(task.published.figures) == len(MODELS) and None not in task.published.figures
        for task in eleven
    )
