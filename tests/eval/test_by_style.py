"""Tasks for any shards, by the style of their annotations: what each scores, and the chance level."""

import pytest

from molmo_ds.eval.benchmarks import BENCHMARKS, by_style
from molmo_ds.eval.row import Row, true_answer
from molmo_ds.eval.score import chance_level, mean

SIZE = (200, 100)
POINTED = {
    "style": "pointing",
    "label": "Cat",
    "points": [[50, 50]],
    "point_scale": 100,
    "boxes": [[90, 40, 110, 60]],
}


def row(annotation: dict, name: str = "one") -> Row:
    return Row(id=name, index=0, picture=name, annotation=annotation, size=SIZE)


def scores(task: str, reply: str, annotation: dict) -> dict[str, float]:
    return BENCHMARKS[task].score(reply, row(annotation))


def test_styles_belong_to_one_task():
    styles = [style for task in by_style.TASKS for style in task.styles]
    assert len(set(styles)) == len(styles)


@pytest.mark.parametrize(
    "task, annotation, right, wrong",
    [
        ("short_answers", {"style": "vqa2", "answer": "7"}, "7.", "8"),
        ("short_answers", {"style": "vqa2", "answer": "The Red Car."}, "the red car", "blue car"),
        ("short_answers", {"style": "vqa2", "answers": ["Red", "crimson"]}, "crimson", "blue"),
        ("direct_answers", {"style": "a_okvqa_da", "answers": ["Red"]}, "red", "blue"),
        ("direct_answers", {"style": "a_okvqa_da", "answers": ["Red"] * 3}, " red", "blue"),
        ("charts", {"style": "chart_qa", "answer": "100"}, "100", "94"),
        ("documents", {"style": "doc_qa", "answers": ["Mr. Hill", "Hill"]}, "hill", "dale"),
        (
            "choices",
            {"style": "a_okvqa_mc", "options": ["cat", "dog"], "answer_index": 1},
            "B",
            "A",
        ),
        (
            "choices",
            {
                "style": "a_okvqa_mc",
                "options": ["cat", "dog"],
                "answer_index": 1,
                "unlabelled": True,
            },
            "a dog",
            "cat",
        ),
        (
            "counts",
            {"style": "point_count", "points": [[1, 1], [2, 2]], "label": "cat"},
            "a total of 2.",
            "three",
        ),
        ("points", POINTED, '<point x="50.1" y="50.0" alt="cat">cat</point>', "There are none."),
    ],
)
def test_right_and_wrong(task: str, annotation: dict, right: str, wrong: str):
    headline = BENCHMARKS[task].headline
    assert scores(task, right, annotation)[headline] == 1.0
    assert scores(task, wrong, annotation)[headline] == 0.0


@pytest.mark.parametrize(
    ("task", "annotation"),
    [
        ("short_answers", {"style": "vqa2", "question": "?", "answer": "7"}),
        (
            "counts",
            {
                "style": "point_count",
                "points": [[1, 1], [2, 2]],
                "point_scale": 100,
                "label": "cat",
            },
        ),
        ("points", POINTED),
    ],
)
def test_the_true_answer_scores_one(task: str, annotation: dict):
    found = scores(task, true_answer(row(annotation)), annotation)
    assert found.pop("unreadable") == 0.0
    assert set(found.values()) == {1.0}


def test_pixels_and_percent_mean_the_same_point():
    pixels = POINTED | {"points": [[100, 50]], "point_scale": None}
    text = '<point x="50.0" y="50.0" alt="cat">cat</point>'
    assert scores("points", text, pixels)["f1"] == 1.0


def test_pointing_without_boxes_is_refused():
    with pytest.raises(ValueError, match="boxes"):
        scores("points", "", {"style": "pointing", "points": []})


def test_chance_is_the_best_constant_answer():
    asked = [
        row({"style": "vqa2", "answer": a}, str(i)) for i, a in enumerate(("1", "2", "2", "3"))
    ]
    assert chance_level(BENCHMARKS["short_answers"], asked) == {"vqa_score": 0.5}
    known = [
        {"style": "point_count", "points": [[1, 1]] * n, "label": "x"} for n in (1, 2, 2, 3, 9)
    ]
    found = chance_level(BENCHMARKS["counts"], [row(one, str(i)) for i, one in enumerate(known)])
    assert (found["valid"], found["correct"], found["close"]) == (1.0, 2 / 5, 4 / 5)
    assert chance_level(BENCHMARKS["short_answers"], [row({"style": "vqa2"})]) == {}


def test_chance_of_counts_whose_points_all_differ():
    """30 ones and 25 threes at places of their own come before all twos, of which 2 is within one of every count."""
    counts = [1] * 30 + [3] * 25 + [2] * 20
    known = [
        {"style": "point_count", "points": [[i, j] for j in range(n)], "label": "x"}
        for i, n in enumerate(counts)
    ]
    known += [dict(one) for one in known[:55]]  # so that ones and threes are the commonest texts
    found = chance_level(BENCHMARKS["counts"], [row(one, str(i)) for i, one in enumerate(known)])
    assert (found["correct"], found["close"]) == (60 / 130, 1.0)


def test_mean_is_over_the_rows_that_have_a_name():
    assert mean([{"a": 1.0}, {"a": 0.0, "b": 0.5}]) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    "task, annotation",
    [
        ("short_answers", {"style": "vqa2", "answers": []}),
        ("short_answers", {"style": "vqa2"}),
        ("direct_answers", {"style": "a_okvqa_da", "answers": [None]}),
        ("charts", {"style": "chart_qa", "answers": []}),
        ("documents", {"style": "doc_qa", "answer": float("nan")}),
        ("documents", {"style": "doc_qa", "answers": ["", ""]}),
        ("choices", {"style": "a_okvqa_mc", "options": ["cat", "dog"], "answer_index": 2}),
        ("choices", {"style": "a_okvqa_mc", "options": ["cat", "dog"], "answer_index": "B"}),
        ("choices", {"style": "a_okvqa_mc", "options": "Yes/No", "answer_index": 0}),
        ("choices", {"style": "a_okvqa_mc", "options": [], "answer_index": 0}),
        ("counts", {"style": "point_count", "label": "cat"}),
        ("points", POINTED | {"boxes": []}),
    ],
)
def test_no_task_scores_a_truth_that_cannot_be_right(task: str, annotation: dict):
    with pytest.raises(ValueError, match=r"^[A-Z].*[^.]\.$"):
        scores(task, "cat", annotation)


def test_the_best_of_several_answers_counts():
    annotation = {"style": "chart_qa", "answers": ["100", "hundred"]}
    right = scores("charts", "Hundred", annotation)
    near = scores("charts", "96", annotation)
    assert (right["relaxed_correctness"], right["em"]) == (1.0, 1.0)
    assert (near["relaxed_correctness"], near["em"]) == (1.0, 0.0)
    # as it is learnt
    assert scores("short_answers", "7", {"style": "vqa2", "answer": 7})["vqa_score"] == 1.0


def test_what_makes_a_prompt_holds_no_truth():
    annotation = POINTED | {
        "answer": "x",
        "answers": ["x"],
        "answer_index": 1,
        "text": "x",
        "masks": [],
        "options": ["a"],
    }
    assert row(annotation).question() == {
        "style": "pointing",
        "label": "Cat",
        "point_scale": 100,
        "options": ["a"],
    }


def test_chance_of_points_that_each_have_a_label_of_their_own():
    """21 labels with two points each come first; the one place of the others, each of a label once, is right in 30."""
    corner = {
        "style": "pointing",
        "points": [[10, 10]],
        "point_scale": 100,
        "boxes": [[15, 5, 25, 15]],
    }
    known = [{**corner, "label": f"thing {i}"} for i in range(30)]
    for i in range(21):
        place = [30 + 3 * i, 90]
        box = [2 * place[0] - 1, 85, 2 * place[0] + 1, 95]
        other = {**corner, "label": f"other {i}", "points": [place], "boxes": [box]}
        known += [other, dict(other)]
    found = chance_level(BENCHMARKS["points"], [row(one, str(i)) for i, one in enumerate(known)])
    assert found["f1"] == pytest.approx(30 / 72)
