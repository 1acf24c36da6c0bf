"""Scores: rules that the recorded cases leave open, each derived by hand."""

import itertools
import random

import pytest

from molmo_ds.eval import scores
from molmo_ds.eval.pointing import nearest_pairs, pointing_scores


@pytest.mark.parametrize("a, b, edits", [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)])
def test_edit_distance(a: str, b: str, edits: int):
    assert scores.edit_distance(a, b) == scores.edit_distance(b, a) == edits


def test_a_missing_apostrophe_is_put_back():
    assert scores.normalise_answer("Dont, Ill") == "don't ill"
    assert scores.normalise_answer("couldnt've couldn'tve") == "couldn't've couldn't've"


def test_an_unreadable_choice_is_drawn_from_the_given_generator():
    class Last:
        def choice(self, letters: list[str]) -> str:
            return letters[-1]

    assert scores.mmmu_score("C", "no idea", ["red", "green", "blue"], Last()) == 1.0


def test_count_without_a_number():
    assert scores.point_count_scores("There are none.", 0) == {"valid": 0.0, "correct": 0.0, "close": 0.0}


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 4), (4, 1), (3, 3), (3, 5), (5, 3)])
def test_pairs_are_the_cheapest_of_all(rows: int, columns: int):
    rng = random.Random(rows * 10 + columns)
    for _ in range(20):
        costs = [[rng.random() for _ in range(columns)] for _ in range(rows)]
        pairs = nearest_pairs(costs)
        assert len(pairs) == min(rows, columns)
        if rows <= columns:
            sums = [sum(costs[i][j] for i, j in enumerate(p)) for p in itertools.permutations(range(columns), rows)]
        else:
            sums = [sum(costs[i][j] for j, i in enumerate(p)) for p in itertools.permutations(range(rows), columns)]
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
        return pointing_scores(f'<point x="{x}" y="5.0" alt="a">a</point>', [(7, 5)], [[4, 4, 10, 10]], (100, 100))[
            "f1"
        ]

    assert (f1(9.4), f1(9.6), f1(4.0), f1(3.4)) == (1.0, 0.0, 1.0, 0.0)
