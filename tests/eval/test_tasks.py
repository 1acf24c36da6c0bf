"""Tasks: what each scores, and the chance level."""

import pytest

from molmo_ds.eval.run import Asked, summarise
from molmo_ds.eval.tasks import TASKS, has_truth, mean, true_answer

SIZE = (200, 100)
POINTED = {"style": "pointing", "label": "Cat", "points": [[50, 50]], "point_scale": 100, "boxes": [[90, 40, 110, 60]]}


def test_styles_belong_to_one_task():
    styles = [style for task in TASKS.values() for style in task.styles]
    assert len(set(styles)) == len(styles)


@pytest.mark.parametrize(
    "task, annotation, right, wrong",
    [
        ("short_answer", {"style": "vqa2", "answer": "7"}, "7.", "8"),
        ("short_answer", {"style": "vqa2", "answer": "The Red Car."}, "the red car", "blue car"),
        ("direct_answer", {"style": "a_okvqa_da", "answers": ["Red"] * 3}, " red", "blue"),
        ("charts", {"style": "chart_qa", "answer": "100"}, "100", "94"),
        ("documents", {"style": "doc_qa", "answers": ["Mr. Hill", "Hill"]}, "hill", "dale"),
        ("multiple_choice", {"style": "a_okvqa_mc", "options": ["cat", "dog"], "answer_index": 1}, "B", "A"),
        (
            "multiple_choice",
            {"style": "a_okvqa_mc", "options": ["cat", "dog"], "answer_index": 1, "unlabelled": True},
            "a dog",
            "cat",
        ),
        ("counting", {"style": "point_count", "points": [[1, 1], [2, 2]], "label": "cat"}, "a total of 2.", "three"),
        ("pointing", POINTED, '<point x="50.1" y="50.0" alt="cat">cat</point>', "There are none."),
    ],
)
def test_right_and_wrong(task: str, annotation: dict, right: str, wrong: str):
    assert set(TASKS[task].score(right, annotation, SIZE).values()) == {1.0}
    assert 0.0 in TASKS[task].score(wrong, annotation, SIZE).values()


@pytest.mark.parametrize("task", ["short_answer", "counting", "pointing"])
def test_the_true_answer_scores_one(task: str):
    annotation = {
        "short_answer": {"style": "vqa2", "question": "?", "answer": "7"},
        "counting": {"style": "point_count", "points": [[1, 1], [2, 2]], "point_scale": 100, "label": "cat"},
        "pointing": POINTED,
    }[task]
    assert set(TASKS[task].score(true_answer(annotation, SIZE), annotation, SIZE).values()) == {1.0}


def test_pixels_and_percent_mean_the_same_point():
    pixels = POINTED | {"points": [[100, 50]], "point_scale": None}
    text = '<point x="50.0" y="50.0" alt="cat">cat</point>'
    assert TASKS["pointing"].score(text, pixels, SIZE)["f1"] == 1.0


def test_pointing_without_boxes_is_refused():
    with pytest.raises(ValueError, match="boxes"):
        TASKS["pointing"].score("", {"style": "pointing", "points": []}, SIZE)


def test_chance_is_the_best_constant_answer():
    asked = [({"style": "vqa2", "answer": a}, SIZE) for a in ("1", "2", "2", "3")]
    assert TASKS["short_answer"].chance(asked) == {"accuracy": 0.5}
    counts = [({"style": "point_count", "points": [[1, 1]] * n, "label": "x"}, SIZE) for n in (1, 2, 2, 3, 9)]
    assert TASKS["counting"].chance(counts) == {"valid": 1.0, "correct": 2 / 5, "close": 4 / 5}


def test_mean_is_over_the_rows_that_have_a_name():
    assert mean([{"a": 1.0}, {"a": 0.0, "b": 0.5}]) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    "task, annotation",
    [
        ("short_answer", {"style": "vqa2", "answers": []}),
        ("short_answer", {"style": "vqa2"}),
        ("direct_answer", {"style": "a_okvqa_da", "answers": [None]}),
        ("charts", {"style": "chart_qa", "answers": []}),
        ("documents", {"style": "doc_qa", "answer": float("nan")}),
        ("documents", {"style": "doc_qa", "answers": ["", ""]}),
        ("multiple_choice", {"style": "a_okvqa_mc", "options": ["cat", "dog"], "answer_index": 2}),
        ("multiple_choice", {"style": "a_okvqa_mc", "options": ["cat", "dog"], "answer_index": "B"}),
        ("multiple_choice", {"style": "a_okvqa_mc", "options": "Yes/No", "answer_index": 0}),
        ("multiple_choice", {"style": "a_okvqa_mc", "options": [], "answer_index": 0}),
        ("counting", {"style": "point_count", "label": "cat"}),
        ("pointing", POINTED | {"boxes": []}),
    ],
)
def test_no_task_scores_a_truth_that_cannot_be_right(task: str, annotation: dict):
    with pytest.raises(ValueError, match=r"^[A-Z].*[^.]\.$"):
        TASKS[task].score("cat", annotation, SIZE)


def test_the_best_of_several_answers_counts():
    annotation = {"style": "chart_qa", "answers": ["100", "hundred"]}
    assert TASKS["charts"].score("Hundred", annotation, SIZE) == {"relaxed_correctness": 1.0, "exact_match": 1.0}
    assert TASKS["charts"].score("96", annotation, SIZE) == {"relaxed_correctness": 1.0, "exact_match": 0.0}
    assert TASKS["short_answer"].score("7", {"style": "vqa2", "answer": 7}, SIZE) == {
        "accuracy": 1.0
    }  # as it is learnt


def test_questions_whose_answer_is_not_public_are_counted_and_not_scored():
    def asked(annotation: dict, scores: dict[str, float]) -> Asked:
        return Asked("short_answer", "key", annotation, SIZE, "7", "", scores)

    assert not has_truth({"answers": []}) and not has_truth({"question": "?", "answer": None})
    assert has_truth({"points": []}) and has_truth({"answer_index": 0}) and has_truth({"answer": ""})
    known = asked({"style": "vqa2", "answer": "7"}, {"accuracy": 1.0})
    unknown = asked({"style": "vqa2", "question": "?"}, {})
    found = summarise([known, unknown, unknown], [TASKS["short_answer"]])["short_answer"]
    assert found == {"questions": 3, "scores": {"accuracy": 1.0}, "chance": {"accuracy": 1.0}, "without_answer": 2}
    found = summarise([unknown], [TASKS["short_answer"]])["short_answer"]
    assert found == {"questions": 1, "scores": {}, "chance": {}, "without_answer": 1}
