"""Scores by the rules of Molmo2's own evaluation: what allenai/molmo2 f3cb108 gives for these replies, run."""

import itertools

import numpy as np
import pytest

from molmo_ds.data import sources
from molmo_ds.data.sources.masks import runs_of
from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.metrics.choice import read_option
from molmo_ds.eval.metrics.mmmu import letter_said
from molmo_ds.eval.metrics.video_choice import last_marked
from molmo_ds.eval.metrics.video_places import score_tracks
from molmo_ds.eval.row import UNREADABLE, Row
from molmo_ds.eval.score import scored_row

PERFECT = '<tracks coords="0.0 1 100 100 2 500 500 3 800 100;1.0 2 500 500 3 800 100">x</tracks>'
NAMES = ["a dog runs", "a cat sleeps", "a man sits", "the cat", "it rains"]


@pytest.mark.parametrize(
    ("reply", "options", "index"),
    [
        ("B. The rotation of the earth causes the", "ABCD", 1),  # 12 tokens of a long option
        ("B or A", "ABCDE", 1),
        ("Best answer: B", "ABCDE", 1),
        ("D", "ABCD", 3),
        ("brown dog", "ABCD", 1),
        ("e,b", "ABCDE", 4),
        ("", "AB", 0),
        ("no The first one", ("no", "yes", "3", "The first one"), 0),
        ("Answer: A", ("a cat (black)", "walking"), 1),
        ("A", ("an apple", "5.0", "The first one", "walking"), 0),
        ("A", ("B is first", "a dog", "Because it rains", "C"), 1),
        ("red", ("dark red", "red car", "red bus"), 1),
        ("the red bus", ("dark red", "red car", "red bus"), 2),
    ],
)
def test_the_option_that_a_reply_begins_with(reply: str, options: tuple[str, ...], index: int):
    assert read_option(reply, options, beginnings=True)[0] == index


@pytest.mark.parametrize(
    ("task", "annotation", "known"),
    [
        ("a_okvqa_mc", {}, {}),
        ("science_qa_img", {}, {}),
        ("tomato", {}, {"reasoning_type": "count"}),
        ("ai2_diagram_v2_mix_transparent", {}, {}),
        (
            "real_world_qa_no_instruction",
            {"question": "?"},
            {"question_type": "multiple_choice", "answer": "B"},
        ),
        (
            "math_vista_v2",
            {},
            {
                "question_type": "multi_choice",
                "answer_type": "text",
                "answer": "the rotation of it",
            },
        ),
    ],
)
def test_a_long_option_that_is_cut_off_is_still_read(task: str, annotation: dict, known: dict):
    """By edits the nearest of the letters would be A or C, whose letter is in the text."""
    options = ["a cat", "the rotation of it", "a dog"]
    asked = {"options": options, "answer_index": 1} | annotation
    known = {"choices": options, "precision": None} | known
    row = Row(id="t:v:0", index=0, picture="p", annotation=asked, metadata=known)
    found = BENCHMARKS[task].score("B. the rotation o", row)
    assert (found[BENCHMARKS[task].headline], found[UNREADABLE]) == (1.0, 0.0)
    reference = f"{BENCHMARKS[task].headline}_reference"
    assert task == "tomato" or found[reference] == 0.0


def test_molmo2_may_answer_longer():
    """allenai/molmo2 f3cb108, olmo/eval/eval_utils.py (get_default_max_tokens); the others have one number in both."""
    longer = {name: task.new_tokens("molmo2") for name, task in BENCHMARKS.items()}
    longer = {
        name: most for name, most in longer.items() if most != BENCHMARKS[name].new_tokens(None)
    }
    assert longer == {
        **dict.fromkeys(("ai2_diagram_v2_mix_transparent", "math_vista_v2", "a_okvqa_mc"), 32),
        **dict.fromkeys(("science_qa_img", "muir_bench"), 32),
        "mmmu_test": 64,
    }
    assert BENCHMARKS["mmmu_test"].new_tokens("molmo") == 12
    assert BENCHMARKS["mmmu_test"].tokens_shown == "12, Molmo2 64"


def test_the_text_of_an_option_is_an_answer_of_math_vista():
    known = {
        "question_type": "multi_choice",
        "answer_type": "text",
        "answer": "dog",
        "precision": None,
    }
    row = Row(
        id="t:v:0",
        index=0,
        picture="p",
        annotation={},
        metadata={**known, "choices": ["cat", "dog"]},
    )
    found = BENCHMARKS["math_vista_v2"].score("dog", row)
    assert found == {"score": 1.0, "score_reference": 0.0, UNREADABLE: 0.0}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B. a cat", "B"),
        ("B) a cat", "B"),
        ("C", "C"),
        ("(A) or B.", "A"),
        ("not C. It is D", "C"),
        ("A: a dog B: a cat", "B"),
        ("B or D", "D"),
        ("it may be that the cat sleeps or it rains", "E"),
        ("A. he takes the cat and it rains", "A"),  # texts of other options stand in it
        ("The answer is C.", "C"),
        ("so C: it is, A. no", "A"),
        ("b) a cow", None),  # drawn there
    ],
)
def test_a_marked_letter(reply: str, letter: str | None):
    assert last_marked(reply, NAMES) == letter
    assert letter_said(reply, NAMES) == letter


@pytest.mark.parametrize(
    "task", ["muir_bench", "blink", "ego_schema", "nextqa_mc", "perception_test"]
)
@pytest.mark.parametrize(
    ("reply", "letter"), [("Answer: B. x", "B"), ("C\nC\nA", "C"), ("A. y Answer: D", "D")]
)
def test_a_letter_is_looked_for_in_the_answer(task: str, reply: str, letter: str):
    """As the reference's VqaEval does: after `Answer:`, or in the commonest line."""
    for index, other in enumerate("ABCD"):
        asked = {"options": ["one", "two", "three", "four", "five"], "answer_index": index}
        row = Row(id="t:v:0", index=0, picture="p", annotation=asked)
        found = BENCHMARKS[task].score(reply, row)
        assert (found[BENCHMARKS[task].headline], found[UNREADABLE]) == (other == letter, 0.0)


def box(left: int, top: int, size: int, shape: tuple[int, int]) -> dict:
    mask = np.zeros(shape, bool)
    mask[top : top + size, left : left + size] = True
    return runs_of(mask)


@pytest.mark.parametrize(
    ("reply", "precision", "recall"),
    [
        ('Here: <points coords="1 1 250 500 2 750 500">cups</points>', 1.0, 1.0),
        (
            '<points coords="1 1 250 500">a</points> <points coords="1 2 750 500 3 100 100">a</points>',
            *(2 / 3, 1.0),
        ),
        ('<points coords="1 1 250 500">cu', 1.0, 0.5),
        ('There are 2 <points coords="1 1 250 500 2 250 510">cups</points>.', 0.5, 0.5),
        ('Here: <point x="25.0" y="50.0" alt="a">a</point>', 0.0, 0.0),  # allenai/molmo's rule
    ],
)
def test_points_count_wherever_they_stand(reply: str, precision: float, recall: float):
    masks = [box(45, 45, 10, (100, 200)), box(145, 45, 10, (100, 200))]
    asked = {"points": [[50.0, 50.0], [150.0, 50.0]], "masks": masks}
    row = Row(id="t:v:0", index=0, picture="p", annotation=asked, size=(200, 100))
    found = BENCHMARKS["pointing_eval"].score(reply, row)
    assert (found["precision"], found["recall"]) == pytest.approx((precision, recall))
    assert found[UNREADABLE] == float(precision == 0)


@pytest.mark.parametrize(
    ("reply", "right", "count"),
    [
        ("Click(25.0, 50.0)", 1.0, 1),
        ("<points a\t-\t1 250 500/>", 1.0, 1),
        ("1 25.0 50.0", 1.0, 1),
        ("(25.0, 50.0) (75.0, 50.0)", 0.0, 2),
        ('<point x="25.0" y="50.0" alt="a">a</point>', 1.0, 1),
    ],
)
def test_points_of_older_forms(reply: str, right: float, count: int):
    mask = box(45, 45, 10, (100, 200))
    known = {"category": "counting", "count": count}
    row = Row(
        id="t:v:0",
        index=0,
        picture="p",
        annotation={"masks": [mask]},
        metadata=known,
        size=(200, 100),
    )
    found = BENCHMARKS["point_bench"].score(reply, row)
    assert (found["all"], found["counting"]) == (right, right)
    assert BENCHMARKS["countbench_qa"].score(reply, row)["correct_points"] == 1.0


def test_a_mask_without_a_pixel_is_asked_and_never_right():
    """A palette's numbers are at most 127 but for large palettes; the reference gives 0."""
    annotation = {"question": "?", "masks": [runs_of(np.zeros((10, 20), bool))]}
    row = Row(id="t:v:0", index=0, picture="p", annotation=annotation, size=(20, 10))
    task = BENCHMARKS["point_bench"]
    assert scored_row(task, row, None, "stop")["scores"]["all"] == 0.0
    assert scored_row(task, row, "(50.0, 50.0)", "stop")["scores"]["all"] == 0.0


def test_averages_over_categories_and_bins():
    means = {"all": 0.9, "counting": 1.0, "spatial": 0.5}
    assert BENCHMARKS["point_bench"].derived(means) == {"average": 0.75}
    means = {"correct": 0.9, "correct_0_5": 1.0, "correct_25": 0.5, "close": 1.0}
    found = BENCHMARKS["vixmo_points_count_clip_63s"].derived(means)
    assert found == {"per_category_average": 0.75}


def tracks_row() -> Row:
    """Three objects of 2 x 2 pixels at 0 s, the first hidden at 1 s, none at 2 s."""
    places = {"0": (1, 1), "1": (5, 5), "2": (8, 1)}
    masks = {name: box(*place, 2, (10, 10)) for name, place in places.items()}
    points = {name: [float(x), float(y)] for name, (x, y) in places.items()}
    hidden = {name: thing for name, thing in points.items() if name != "0"}
    moments = [{"time": 0.0, "points": points}, {"time": 1.0, "points": hidden}]
    moments.append({"time": 2.0, "points": {}})
    known = {"width": 10, "height": 10, "fps": 2.0, "objects": list(places)}
    asked = {"label": "x", "tracks": moments, "masks": [masks, masks, {}]}
    return Row(id="t:v:0", index=0, picture="p", annotation=asked, metadata=known)


@pytest.mark.parametrize(
    ("reply", "precision", "recall", "detected", "associated"),
    [
        (PERFECT, 2 / 3, 2 / 3, 2 / 3, 0.5),
        (
            '<tracks coords="0.0 1 100 100 2 800 100;1.0 1 500 500 2 120 120;2.0 1 300 300">x</tracks>',
            *(1 / 3, 2 / 9, 2 / 3, 0.3125),
        ),
        ("There are none.", 1 / 3, 1 / 3, 0.0, 0.0),
        (
            '<tracks coords="0.9 1 100 100;1.0 2 500 500;1.1 2 800 100">x</tracks>',  # one frame
            *(1 / 3, 1 / 3, 0.0, 0.0),
        ),
    ],
)
def test_tracks_as_the_reference_scores_them(
    reply: str, precision: float, recall: float, detected: float, associated: float
):
    """It compares an object with the mask of another where one before it is hidden: a perfect reply has HOTA 0.577."""
    found = score_tracks(reply, tracks_row())
    names = ("precision", "recall", "DetA", "AssA", "HOTA")
    wanted = (precision, recall, detected, associated, (detected * associated) ** 0.5)
    assert [found[f"{name}_reference"] for name in names] == pytest.approx(wanted, abs=1e-6)


def published_tracks(points: dict) -> Row:
    """Molmo2's own row of three objects, whose points, masks and numbers are in three orders."""
    places = {"a": (1, 1), "b": (5, 5), "c": (8, 1)}
    masks = {name: box(y, x, 2, (10, 10))["runs"] for name, (x, y) in places.items()}  # by columns
    row = {"id": "e", "exp": "x", "fps": 2, "mask_id": ["a", "b", "c"], "w": 10, "h": 10}
    row |= {"clip": "c", "video_dataset": "sav"}
    row["points"] = [{"object_id": name, "points": seen} for name, seen in points.items()]
    coco = {name: {"size": [10, 10], "counts": masks[name]} for name in "cab"}
    row["masks"] = [{"object_id": name, "masks": [mask] * 3} for name, mask in coco.items()]
    [item] = sources.get("molmo2_video_track_eval").adapt(row, "test")
    known = {"annotation": item.annotations[0], "metadata": item.metadata}
    return Row(id="t:v:0", index=0, picture="p", **known)


@pytest.mark.parametrize(
    ("reply", "detected", "associated"),
    [
        (
            '<tracks coords="0.0 1 110 110 2 510 510 3 810 110;1.0 2 510 510 3 810 110">x</tracks>',
            *(2 / 3, 0.41666666666666663),
        ),
        (
            '<tracks coords="0.0 1 510 510 2 810 110;1.0 1 110 110 2 510 510 3 810 110">x</tracks>',
            *(2 / 3, 0.75),
        ),
        ("There are none.", 0.0, 0.0),
    ],
)
def test_tracks_whose_parts_are_published_in_other_orders(
    reply: str, detected: float, associated: float
):
    """Of allenai/molmo2's own row and metric: means over frames and HOTA take the points in different orders."""
    points = {"b": [[5.0, 5.0], None, [5.0, 5.0]], "c": [[8.0, 1.0], None, [8.0, 1.0]]}
    found = score_tracks(reply, published_tracks({**points, "a": [[1.0, 1.0], None, None]}))
    names = ("precision", "recall", "f1", "DetA", "AssA", "HOTA")
    wanted = (0.0, 0.0, 0.0, detected, associated, (detected * associated) ** 0.5)
    assert [found[f"{name}_reference"] for name in names] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ("reply", "score", "unreadable"),
    [
        ("There are none.", 1.0, 0.0),
        ("No tracks available.", 1.0, 0.0),
        ("", 1.0, 1.0),
        ('<tracks coords="0.0 1 510 510">x</tracks>', 0.0, 0.0),
    ],
)
def test_where_nothing_is_seen_at_the_times_of_the_rate(
    reply: str, score: float, unreadable: float
):
    """The reference asks such a row too, and a reply without points is right; it was left out here."""
    row = published_tracks({"a": [None, [1.0, 1.0], None]})
    assert row.annotation["tracks"] == []
    found = score_tracks(reply, row)
    assert found.pop("unreadable") == unreadable
    assert set(found.values()) == {score}
    assert len(found) == 12
    assert BENCHMARKS["molmo2_video_track_eval_1fps"].truth(row) == "There are none."


def test_perfect_tracks_are_perfect():
    found = score_tracks(PERFECT, tracks_row())
    assert [found[name] for name in ("precision", "recall", "f1", "HOTA")] == [1.0] * 4


def test_moments_without_objects_and_hidden_masks_reach_the_record():
    moments = [
        {"frame": 0, "time": 0.0, "points": [{"id": "9", "point": [1.0, 1.0], "occluded": False}]}
    ]
    moments.append({"frame": 6, "time": 1.0, "points": []})
    mask = {"size": [2, 3], "counts": [2, 2, 2]}
    row = {"id": "e1", "video": "v", "qid": 4, "expression": "the cat", "fps": 6, "sampling_fps": 1}
    row |= {"mask_id": ["9"], "width": 3, "height": 2, "frame_trajectories": moments}
    row["masks"] = {"9": [mask] * 7}
    [item] = itertools.chain(sources.get("mevis_track_eval").adapt(row, "test"))
    [asked] = item.annotations
    assert [moment["points"] for moment in asked["tracks"]] == [{"0": [1.0, 1.0]}, {}]
    assert [sorted(masks) for masks in asked["masks"]] == [["0"], ["0"]]
    assert item.metadata["objects"] == ["0"]
