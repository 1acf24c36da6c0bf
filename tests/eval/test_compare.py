"""Two runs compared: the paired test against numbers derived by hand and by scipy, and what is said of changes."""

import json
import math
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from molmo_ds.cli import compare as command
from molmo_ds.eval.compare import compare, read, report

FIRST = [1, 0, 0, 1, 0, 1, 0, 0]
SECOND = [1, 1, 0, 1, 1, 0, 1, 0]


def rows(
    values: list[float], pictures: list[str] | None = None, task: str = "text_vqa:validation"
) -> list[dict]:
    names = pictures or [str(i) for i in range(len(values))]
    return [
        {
            "id": f"{task}:{i}",
            "picture": name,
            "reply": f"says {value}",
            "truth": "1",
            "scores": {"vqa_score": value, "em": value},
        }
        for i, (value, name) in enumerate(zip(values, names))
    ]


def test_a_picture_a_question_is_the_paired_t_test():
    [found] = compare(rows(FIRST), rows(SECOND))
    known = ttest_rel(SECOND, FIRST)
    assert found.p_value == pytest.approx(known.pvalue, rel=1e-12)
    assert (found.first, found.second) == (3 / 8, 5 / 8)
    assert (found.second - found.first) / found.standard_error == pytest.approx(
        known.statistic, rel=1e-12
    )
    assert (len(found.better), len(found.worse), len(found.otherwise)) == (3, 1, 0)


def test_questions_of_one_picture_are_one_cluster():
    pictures = ["a", "a", "b", "b", "c", "c", "d", "d"]
    [found] = compare(rows(FIRST, pictures), rows(SECOND, pictures))
    # differences 0 1 0 0 1 -1 1 0, mean 1/4; residuals summed by picture: 1/2, -1/2, -1/2, 1/2
    assert found.standard_error == pytest.approx(math.sqrt(4 / 4 * 4 / 3) / 8)
    assert found.pictures == 4
    doubled = compare(
        rows(FIRST * 2, list("abcdefgh") * 2), rows(SECOND * 2, list("abcdefgh") * 2)
    )[0]
    alone = compare(rows(FIRST), rows(SECOND))[0]
    # asking everything twice proves nothing more
    assert doubled.p_value == pytest.approx(alone.p_value)


def test_order_does_not_show_and_what_one_run_lacks_is_said():
    here = rows(FIRST)
    there = rows(SECOND)[::-1][:-2]  # without the questions 0 and 1
    [found] = compare(here, there)
    assert (found.questions, found.only_first, found.only_second) == (6, 2, 0)
    assert found == compare(here[::-1], there[::-1])[0]
    said = report(found, ("a", "b"), shown=1)
    assert "left out: 2 only in a, 0 only in b" in said
    assert "better: text_vqa:validation:4: 'says 0' -> 'says 1', true '1'" in said
    assert said.count("better: ") == 1


def test_what_is_unlike_is_said(caplog: pytest.LogCaptureFixture):
    there = [{**row, "truth": "2" if row["id"].endswith(":3") else "1"} for row in rows(SECOND)]
    [found] = compare([*rows(FIRST), *rows(FIRST, task="okvqa:validation")], there)
    assert found.other_truth == 1 and found.questions == 8
    assert "  1 of the questions have another true answer in b" in report(found, ("a", "b"), 0)
    assert caplog.messages == ["Only one of the runs has okvqa:validation."]


def test_equal_runs_differ_by_nothing():
    [found] = compare(rows(FIRST), rows(FIRST))
    assert (found.p_value, found.standard_error) == (1.0, 0.0)
    [found] = compare(rows([0, 0]), rows([1, 1]))
    assert found.p_value is None  # every picture changed alike
    assert compare(rows([0]), rows([1]))[0].standard_error is None


def test_mistakes_are_a_sentence(tmp_path: Path):
    def says(words: str, *given: object) -> None:
        with pytest.raises(ValueError, match=words):
            compare(*given)

    says(
        "^The runs have no task in common: text_vqa:validation and okvqa:validation",
        rows([1]),
        rows([1], task="okvqa:validation"),
    )
    says("has the metric 'f1' in both runs; there are em, vqa_score", rows([1]), rows([1]), "f1")
    says("is there twice in one run", rows([1]) * 2, rows([1]))
    says("The task mine:x is none of ours", rows([1], task="mine:x"), rows([1], task="mine:x"))
    with pytest.raises(ValueError, match=r"^There is no rows.jsonl"):
        list(read(tmp_path))
    (tmp_path / "rows.jsonl").write_text('{"id": "x"}\n')
    with pytest.raises(ValueError, match=r"^Line 1 of .* is not a scored row"):
        list(read(tmp_path))


def test_the_command_reads_folders(tmp_path: Path, capsys: pytest.CaptureFixture):
    for name, values in (("a", FIRST), ("b", SECOND)):
        folder = tmp_path / name / "predictions-text_vqa-validation"
        folder.mkdir(parents=True)
        folder.joinpath("rows.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows(values))
        )
    command.main(
        [
            str(tmp_path / "a"),
            str(tmp_path / "b" / "predictions-text_vqa-validation"),
            "--changed",
            "0",
        ]
    )
    said = capsys.readouterr().out
    assert "text_vqa:validation: vqa_score 0.3750 -> 0.6250: +0.2500" in said
    assert "3 better, 1 worse, 0 changed in words only" in said
    command.main([str(tmp_path / "a"), str(tmp_path / "a"), "--metric", "em"])
    assert "em 0.3750 -> 0.3750: +0.0000 ± 0.0000, p = 1" in capsys.readouterr().out


def test_fewer_unreadable_replies_are_better():
    before, after = rows(FIRST), rows(SECOND)
    for one in before + after:
        one["scores"]["unreadable"] = 1 - one["scores"]["em"]
    [found] = compare(before, after, "unreadable")
    assert (len(found.better), len(found.worse)) == (3, 1), "as by the score"
    assert found.second - found.first == pytest.approx(-2 / 8)
