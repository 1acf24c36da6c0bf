"""Files for test servers: their forms, and that no question is missing, there twice, or not asked for."""

import json
from pathlib import Path

import pytest

from molmo_ds.eval import submit
from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.row import Row


def row(task: str, number: int, **annotation: object) -> Row:
    known = {"style": task, "question": "?", **annotation}
    return Row(
        id=f"{task}:test:{number}",
        index=number,
        picture="p",
        annotation=known,
        metadata={"example_id": number},
    )


def made(task: str, rows: list[Row], *replies: str) -> submit.Submission:
    return submit.submission(
        BENCHMARKS[task], rows, {one.id: reply for one, reply in zip(rows, replies)}
    )


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        (
            "vqa_v2_test",
            [{"question_id": 7, "answer": "red"}, {"question_id": 3, "answer": "a  b"}],
        ),
        ("text_vqa", [{"question_id": 7, "answer": "red"}, {"question_id": 3, "answer": "a  b"}]),
        ("doc_qa", [{"questionId": 7, "answer": "red"}, {"questionId": 3, "answer": "a  b"}]),
        ("info_qa", [{"questionId": 7, "answer": "red"}, {"questionId": 3, "answer": "a  b"}]),
        ("a_okvqa_da", {"7": {"direct_answer": "red"}, "3": {"direct_answer": "a  b"}}),
        ("mmmu_test", {"7": "red", "3": "a  b"}),
    ],
)
def test_short_answers(task: str, wanted: object):
    rows = [row(task, 7), row(task, 3)]
    assert made(task, rows, "red\nred\nblue", " a  b ") == wanted


def test_an_option_is_written_as_its_text_and_an_exam_s_as_its_letter():
    rows = [row("a_okvqa_mc", number, options=["a cat", "a dog"]) for number in (1, 2)]
    assert made("a_okvqa_mc", rows, "B", "A") == {
        "1": {"multiple_choice": "a dog"},
        "2": {"multiple_choice": "a cat"},
    }
    rows = [row("mmmu_test", number, options=["x", "y", ""]) for number in (1, 2)]
    found = made("mmmu_test", rows, "(B)", "no idea")
    assert found["1"] == "B"
    assert found["2"] in ("A", "B")  # an empty option is none
    # drawn by the question, not by the order
    assert found == made("mmmu_test", rows[::-1], "no idea", "(B)")


def test_both_answers_of_a_okvqa_make_one_file():
    one = {"1": {"multiple_choice": "cat"}, "2": {"multiple_choice": "dog"}}
    both = {
        "1": {"multiple_choice": "cat", "direct_answer": "a cat"},
        "2": {"multiple_choice": "dog"},
    }
    assert submit.merge(one, {"1": {"direct_answer": "a cat"}}) == both


def test_a_file_that_is_not_whole_is_refused():
    task = BENCHMARKS["doc_qa"]
    rows = [row("doc_qa", number) for number in range(5)]
    replies = {one.id: "x" for one in rows}

    def says(
        words: str, rows: list[Row], replies: dict[str, str], expected: list[int] | None = None
    ) -> None:
        with pytest.raises(ValueError, match=words):
            submit.submission(task, rows, replies, expected)

    says(
        r"^Questions of doc_qa are without a reply: 1, 2, 3 and 1 more\. .*\.$",
        rows,
        {rows[0].id: "x"},
    )
    says(
        r"^Questions of doc_qa are not asked: doc_qa:test:9\. .*\.$",
        rows,
        {**replies, "doc_qa:test:9": "x"},
    )
    twice = Row(id="other", index=0, picture="p", annotation={}, metadata={"example_id": 4})
    says("are there twice: 4", [*rows, twice], {**replies, "other": "x"})
    says("are missing: 5, 6", rows, replies, [0, 1, 2, 3, 4, 5, 6])
    says("are unknown to the server: 4", rows, replies, [0, 1, 2, 3])
    nameless = Row(id="doc_qa:test:key", index=0, picture="p", annotation={})
    says("has no example_id", [nameless], {nameless.id: "x"})
    with pytest.raises(ValueError, match="There is no test server for chart_qa"):
        submit.submission(BENCHMARKS["chart_qa"], [], {})


def test_the_number_of_questions_is_known():
    task = BENCHMARKS["doc_qa"]
    assert submit.expected_number(task, "test", [row("doc_qa", 1)]).startswith(
        "doc_qa:test has 5,188 questions, and 1"
    )
    assert submit.expected_number(BENCHMARKS["text_vqa"], "test", [row("text_vqa", 1)]) is None


def test_a_file_is_written(tmp_path: Path):
    submit.write(tmp_path / "out.json", [{"question_id": 1, "answer": "café"}])
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == [
        {"question_id": 1, "answer": "café"}
    ]
