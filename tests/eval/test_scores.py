"""Scores: rules that the recorded cases leave open, each derived by hand."""

import itertools
import random

import pytest

from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.metrics.anls import anls
from molmo_ds.eval.metrics.chart import lenient_correctness
from molmo_ds.eval.metrics.choice import (
    multiple_choice_score,
    read_option,
    score_choice,
    select_mc_option,
)
from molmo_ds.eval.metrics.clocks import clock_scores
from molmo_ds.eval.metrics.count import point_count, point_count_scores
from molmo_ds.eval.metrics.mmmu import mmmu_score
from molmo_ds.eval.metrics.pointing import (
    extract_points,
    in_format,
    nearest_pairs,
    pointing_scores,
)
from molmo_ds.eval.metrics.real_world import real_world_qa_score
from molmo_ds.eval.metrics.reply import edit_distance
from molmo_ds.eval.metrics.vqa import a_okvqa_score, normalise_answer, vqa_official, vqa_score
from molmo_ds.eval.row import Row


@pytest.mark.parametrize(
    "a, b, edits", [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)]
)
def test_edit_distance(a: str, b: str, edits: int):
    assert edit_distance(a, b) == edit_distance(b, a) == edits


def plain_edit_distance(a: str, b: str) -> int:
    """The table of distances, line by line."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        above = row
        row = [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != other)))
    return row[-1]


def test_edit_distance_is_the_table_s():
    draw = random.Random(3)
    for _ in range(300):
        a, b = ("".join(draw.choices("abcé", k=draw.randint(0, 90))) for _ in range(2))
        assert edit_distance(a, b) == plain_edit_distance(a, b), (a, b)


def test_a_missing_apostrophe_is_put_back():
    assert normalise_answer("Dont, Ill") == "don't ill"
    assert normalise_answer("He's, shes") == "he's shes"  # the challenge's list repairs it not
    assert normalise_answer("couldnt've couldn'tve") == "couldn't've couldn't've"


def test_an_unreadable_choice_is_drawn_from_the_given_generator():
    class Last:
        def choice(self, letters: list[str]) -> str:
            return letters[-1]

    assert mmmu_score("C", "no idea", ["red", "green", "blue"], Last()) == 1.0


def test_count_without_a_number():
    assert point_count_scores("There are none.", 0) == {"valid": 0.0, "correct": 0.0, "close": 0.0}


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 4), (4, 1), (3, 3), (3, 5), (5, 3)])
def test_pairs_are_the_cheapest_of_all(rows: int, columns: int):
    rng = random.Random(rows * 10 + columns)
    for _ in range(20):
        costs = [[rng.random() for _ in range(columns)] for _ in range(rows)]
        pairs = nearest_pairs(costs)
        assert len(pairs) == min(rows, columns)
        if rows <= columns:
            sums = [
                sum(costs[i][j] for i, j in enumerate(p))
                for p in itertools.permutations(range(columns), rows)
            ]
        else:
            sums = [
                sum(costs[i][j] for j, i in enumerate(p))
                for p in itertools.permutations(range(rows), columns)
            ]
        assert sum(costs[i][j] for i, j in pairs) == pytest.approx(min(sums))


def test_one_of_two_points_is_inside_its_box():
    text = '<points x1="10.0" y1="10.0" x2="90.0" y2="90.0" alt="7">7</points>'
    boxes = [[5, 5, 15, 15], [40, 40, 60, 60], [70, 0, 80, 10]]
    found = pointing_scores(text, [(10, 10), (50, 50), (75, 5)], boxes, (100, 100))
    assert found["precision"] == 1 / 2
    assert found["recall"] == 1 / 3
    assert found["f1"] == pytest.approx(2 / 5)


def test_a_box_ends_before_its_right_edge():
    def f1(x: float) -> float:
        return pointing_scores(
            f'<point x="{x}" y="5.0" alt="a">a</point>', [(7, 5)], [[4, 4, 10, 10]], (100, 100)
        )["f1"]

    assert (f1(9.4), f1(9.6), f1(4.0), f1(3.4)) == (1.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a total of 5\na total of 6", 6),  # the last word comes first
        ("a total of 7 things", 7),
        ("a total of 7, then a total of 8 things", 8),
        ("many\na total of 7 things", None),  # only the first line is searched
        ("a total of seven things", None),  # only digits are read there
        ("seven", 7),
        ("It is 4 .", 4),
        (" 4. ", 4),
        ("twenty-one", None),
        ("There are none.", None),
        ("", None),
        ("9" * 5000, None),  # more digits than int() takes
    ],
)
def test_the_order_of_readings_of_a_count(text: str, count: int | None):
    assert point_count(text) == count


NO_TRUTH = (
    lambda: vqa_score([], "7"),
    lambda: vqa_score(None, "7"),
    lambda: vqa_score(["7", 7], "7"),
    lambda: a_okvqa_score([], "7"),
    lambda: anls("", ""),
    lambda: select_mc_option("a", []),
    lambda: select_mc_option("a", ["Red", "red "]),
    lambda: multiple_choice_score(4, "A", "ABCD"),
    lambda: multiple_choice_score(-1, "A", "ABCD"),
    lambda: multiple_choice_score("A", "A", "ABCD"),
    lambda: multiple_choice_score(None, "A", "ABCD"),
    lambda: multiple_choice_score(True, "A", "ABCD"),
    lambda: real_world_qa_score("E", "E", True),
    lambda: real_world_qa_score("a", "a", True),
    lambda: real_world_qa_score("AB", "AB", True),
    lambda: real_world_qa_score("", "A", True),
    lambda: real_world_qa_score(None, "None", False),
    lambda: point_count_scores("3", -1),
    lambda: point_count_scores("3", None),
    lambda: point_count_scores("3", 3.5),
    lambda: mmmu_score("C", "C", ["red", "green"]),
    lambda: mmmu_score("C", "C", ["red", "", "green"]),  # empty options do not count
    lambda: mmmu_score([], "C", None),
    lambda: mmmu_score([], "C", ["red", "green"]),
    lambda: pointing_scores("", [(1, 1)], [], (9, 9)),
    lambda: pointing_scores("", [], [[0, 0, 2, 2]], (9, 9)),
    lambda: pointing_scores("", [(1, 1)], [[5, 5, 5, 9]], (9, 9)),
    lambda: pointing_scores("", [(1, 1)], [[9, 0, 12, 2]], (9, 9)),
    lambda: pointing_scores("", [(1, 1)], [[0, 0, float("nan"), 2]], (9, 9)),
    lambda: pointing_scores("", [(1, 1)], ["0 0 2 2"], (9, 9)),
)


@pytest.mark.parametrize("score", NO_TRUTH)
def test_a_truth_that_cannot_be_right_is_refused(score):
    with pytest.raises(ValueError, match=r"^[A-Z].*[^.]\.$"):
        score()


def test_nothing_is_within_a_share_of_infinity():
    assert not lenient_correctness("inf", "26 km") and lenient_correctness("20", "21")


def test_what_is_right_is_still_right():
    assert multiple_choice_score(3, "d", "ABCD") and not multiple_choice_score(0, "d", "ABCD")
    assert real_world_qa_score("D", "d", True) is True
    assert a_okvqa_score("Red", "red") == pytest.approx(1 / 3)
    assert mmmu_score("B", "B", ["red", "", "green"]) == 1.0  # the second of two that count


@pytest.mark.parametrize(
    ("target", "reply", "right"),
    [
        ("7", "The result is 7", 1.0),
        ("7", "The result is \n7", 0.0),  # what stands before a word of the answer is the answer
        ("2000", "2,000", 1.0),
        ("0", "2,000", 1.0),
        ("4", "final answer 1e4", 1.0),
    ],
)
def test_open_answers_of_mmmu_as_its_own_code_reads_them(target: str, reply: str, right: float):
    """Numbers of allenai/molmo 793fa38, olmo/eval/mmmu_eval_utils.py, run."""
    assert mmmu_score([target], reply, None) == right


@pytest.mark.parametrize(
    ("text", "wholly"),
    [
        ('<point x="1.0" y="2" alt="a">b</point>\n', True),
        ('<point x="1.0" y="2">b</point>', False),
        ('<points x1="1" y1="2" x2="3" y2="4" alt="a">b</points>', True),
        ('<points x1="1" alt="a">b</points>', False),
        ('<point x="1.0" y="2" alt="a">b</points>', False),
        ("(1.0, 2)(3, 4.5)", True),
        ("(1.0, 2)\n(3, -4)", True),
        ("(1.0, 2) (3, 4)", False),
        ('<points 1=105,203 2=301,040 alt="a">b</points>', True),
        ('<points 1=1050,203 alt="a">b</points>', False),
    ],
)
def test_points_and_nothing_else(text: str, wholly: bool):
    assert in_format(text) is wholly


def test_a_point_on_the_far_edge_is_in_no_mask():
    text = '<point x="100.0" y="50.0" alt="a">a</point>'  # rounds to 10, and the last pixel is 9
    assert pointing_scores(text, [(9, 5)], [[8, 4, 12, 7]], (10, 10))["f1"] == 0.0
    assert (
        pointing_scores(text.replace("100.0", "90.0"), [(9, 5)], [[8, 4, 12, 7]], (10, 10))["f1"]
        == 1.0
    )


def test_a_mask_is_read_line_by_line():
    mask = {"height": 3, "width": 4, "runs": [5, 2, 5]}  # the pixels (1, 1) and (2, 1)
    text = '<point x="{}" y="{}" alt="a">a</point>'

    def inside(x: float, y: float) -> bool:  # percent of a picture of 4 x 3
        return pointing_scores(text.format(x, y), [(1, 1)], [mask], (4, 3))["f1"] == 1.0

    assert inside(25.0, 33.0) and inside(50.0, 33.0)
    assert (
        not inside(0.0, 33.0)
        and not inside(75.0, 33.0)
        and not inside(25.0, 66.0)
        and not inside(25.0, 0.0)
    )


@pytest.mark.parametrize("runs", [[12], [5, 2, 4], [5, 0, 7]])
def test_a_mask_without_a_pixel_is_refused(runs: list[int]):
    with pytest.raises(ValueError, match=r"^A mask holds no pixel.*\.$"):
        pointing_scores("", [(1, 1)], [{"height": 3, "width": 4, "runs": runs}], (4, 3))


@pytest.mark.parametrize(
    ("reply", "index", "said"),
    [("b", 1, True), ("B.", 1, False), ("", 0, False), ("gree", 1, True), ("e", 2, False)],
)
def test_what_a_reply_says_and_what_is_guessed(reply: str, index: int, said: bool):
    options = ["A", "B"] if reply[:1] in ("b", "B", "") else ["red", "green", "teal"]
    found = read_option(reply, options)
    assert found[1] is said
    assert found[0] == index or not said


def test_three_of_ten_are_nine_tenths_officially():
    given = ["cat"] * 3 + ["dog"] * 7
    assert vqa_score(given, "cat") == 1.0
    # each person left out in turn
    assert vqa_official(given, "cat") == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)


def test_a_minute_before_twelve_is_close_to_twelve_in_photographs_only():
    assert clock_scores("11:59", 12, 0, -1, benchmark=True)["overall_close"] == 1.0
    assert clock_scores("11:59", 12, 0, -1, benchmark=False)["overall_close"] == 0.0


def test_points_of_molmo2_are_scored_too() -> None:
    """Thousandths in groups: (250, 500) of 200 x 100 pixels is (50, 50)."""
    text = '<points coords="1 1 250 500 2 750 500">cups</points>'
    assert extract_points(text, 200, 100) == [(50.0, 50.0), (150.0, 50.0)]
    boxes = [(45, 45, 55, 55), (145, 45, 155, 55)]
    scores = pointing_scores(text, [(50, 50), (150, 50)], boxes, (200, 100))
    assert scores == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert point_count(f"Counting the {text} shows a total of 2.") == 2


@pytest.mark.parametrize(
    ("reply", "right", "unreadable"),
    [
        ("B", 1, 0),
        ("B. a bad cat", 1, 0),  # as near to A as to B by edits
        ("(b) A bad cat.", 1, 0),
        ("Answer: B: a bad cat", 1, 0),
        ("A. a dog", 0, 0),
        ("A. a bad cat", 0, 0),  # contradicts itself: it begins with A, as Molmo2's rule reads it
    ],
)
def test_an_option_with_its_letter(reply: str, right: int, unreadable: int):
    annotation = {"options": ["a dog", "a bad cat"], "answer_index": 1}
    row = Row(id="t:v:0", index=0, picture="p", annotation=annotation)
    found = score_choice(reply, row)
    assert (found["mc"], found["unreadable"]) == (right, unreadable)


@pytest.mark.parametrize(
    ("reply", "right", "unreadable"), [("B. a cat", 1, 0), ("A. a dog", 0, 0), ("B", 1, 0)]
)
@pytest.mark.parametrize("task", ["mmmu_test", "muir_bench", "real_world_qa_no_instruction"])
def test_an_option_with_its_letter_is_not_drawn(task: str, reply: str, right: int, unreadable: int):
    """MMMU's own reader sees no letter there, and by edits RealWorldQA would take A."""
    options = ["a dog", "a cat"]
    question = "What is it?\nA. a dog\nB. a cat\nPlease answer with the letter."
    annotation = {"question": question, "answer": "B"}
    known = {"question_type": "multiple_choice", "answer": "B"}
    if not task.startswith("real"):
        annotation = {"options": options, "answer_index": 1}
    for name in ("t:v:0", "t:v:1", "t:v:2", "t:v:3"):
        row = Row(id=name, index=0, picture="p", annotation=annotation, metadata=known)
        found = BENCHMARKS[task].score(reply, row)
        assert found[BENCHMARKS[task].headline] == right
        assert found["unreadable"] == unreadable
