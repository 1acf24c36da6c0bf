"""Marks for MLVU's free answers: what the judge is asked, what is read of its replies, figures and failures."""

import json
from pathlib import Path
from typing import Any

import pytest
from judge_stand_in import StandIn, completion

from molmo_ds.cli import judge as command
from molmo_ds.data import sources
from molmo_ds.eval.captions import marks
from molmo_ds.eval.captions.statements import Unreadable

SCENE = {
    "id": "mlvu_gen:validation:sub_scene_0",
    "task_type": "sub_scene",
    "question": "What does he do?",
    "answer": "He runs.",
    "scoring_points": "He runs.\nHe falls.",
    "prediction": "He runs and falls.",
}
SUMMARY = {**SCENE, "id": "b", "task_type": "summary", "prediction": "All is well."}
JUDGE = ["--judge-model", "stand-in"]


def judged(folder: Path, rows: list[dict], judge: StandIn, *more: str) -> dict[str, Any]:
    (folder / "predictions.json").write_text(json.dumps(rows))
    command.main([str(folder), *JUDGE, "--judge-url", judge.url, *more])
    return json.loads((folder / "judge.json").read_text())


def test_means_sums_and_failures(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    said = {"He hides.": "I cannot say.", "No.": completion("", "content_filter")}

    def behave(call: str, text: str, times: int) -> Any:
        return next((reply for answer, reply in said.items() if answer in text), None)

    rows = [SCENE, SUMMARY, {**SUMMARY, "id": "c", "prediction": "He hides."}]
    rows += [{**SUMMARY, "id": "d", "prediction": "No."}, {**SUMMARY, "id": "e", "prediction": " "}]
    with StandIn(behave) as judge:
        found = judged(tmp_path, rows, judge)
        assert judge.calls["marks"] == 4  # nothing to judge in an empty answer, which has 1 and 1
        assert judge.temperatures == {"marks": 0}
        assert judged(tmp_path, rows, judge) == found
        assert judge.calls["marks"] == 4  # the rest is in the cache
    assert found["metrics"] == {
        "sub_scene_accuracy": 4.0,
        "sub_scene_relevance": 2.5,
        "sub_scene_total": 6.5,
        "n_sub_scene": 1,
        "summary_completeness": 2.5,
        "summary_reliability": 1.75,
        "summary_total": 4.25,
        "n_summary": 2,
    }
    assert [one["id"] for one in found["failures"]] == ["c", "d"]
    assert found["failures"][0]["reason"].startswith(
        "unreadable: There is no mark for completeness"
    )
    assert found["failures"][1]["reason"].startswith("refused: ")
    assert "2 calls gave nothing to score" in capsys.readouterr().out


def test_the_judge_sees_question_truth_and_answer() -> None:
    answers = marks.read([SCENE, SUMMARY])
    texts = [marks.messages(answer)[0]["content"] for answer in answers]
    assert all(part in texts[0] for part in ("What does he do?", "He falls.", "He runs and falls."))
    assert "He runs." in texts[1] and "He falls." not in texts[1] and "All is well." in texts[1]


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('{"accuracy": 5, "relevance": 1}', {"accuracy": 5.0, "relevance": 1.0}),
        ("{'accuracy': 3.5, 'relevance': 2} ", {"accuracy": 3.5, "relevance": 2.0}),
        ('{"accuracy": 1} no: {"accuracy": 2, "relevance": 2, "total": 4}', {"accuracy": 2.0, "relevance": 2.0}),
        ('{"accuracy": 6, "relevance": 1}', "is 6, which is not from 1 to 5"),
        ('{"accuracy": 0, "relevance": 1}', "is 0, which is not from 1 to 5"),
        ('{"accuracy": NaN, "relevance": 1}', "is nan, which is not from 1 to 5"),
        ('{"accuracy": true, "relevance": 1}', "no mark for accuracy"),
        ('{"accuracy": "4", "relevance": 1}', "no mark for accuracy"),
        ('{"accuracy": 4}', "no mark for relevance"),
        ("[4, 4]", "no mark for accuracy"),
        ("", "no mark for accuracy"),
    ],
)  # fmt: skip
def test_reading(reply: str, found: Any) -> None:
    if isinstance(found, dict):
        assert marks.read_marks(reply, "sub_scene") == found
        return
    with pytest.raises(Unreadable, match=found):
        marks.read_marks(reply, "sub_scene")


def test_mistakes_are_a_sentence(tmp_path: Path) -> None:
    with StandIn() as judge:
        judged(tmp_path, [SCENE], judge)
        with pytest.raises(ValueError, match=r"inputs_sha256 differ\); give --overwrite"):
            judged(tmp_path, [SUMMARY], judge)
        assert judged(tmp_path, [SUMMARY], judge, "--overwrite")["metrics"]["n_summary"] == 1
        with pytest.raises(ValueError, match="lacks its task_type, question"):
            judged(tmp_path, [{**SCENE, "scoring_points": None}], judge)
        with pytest.raises(ValueError, match="need --references"):
            judged(tmp_path, [{"id": "a", "prediction": "x"}], judge)
        with pytest.raises(SystemExit):
            command.main([str(tmp_path), *JUDGE, "--repetition"])


def test_what_the_judge_needs_reaches_the_predictions() -> None:
    row = {"question_id": "sub_scene_0", "video": "v", "duration": 9.0, "place": "p"}
    row |= {
        "kind": "sub_scene",
        "question": "?",
        "answer": "He runs.",
        "scoring_points": ["a", "b"],
    }
    [item] = sources.get("mlvu_gen").adapt(row, "validation")
    known = {key: item.metadata[key] for key in ("task_type", "question", "answer")}
    assert known == {"task_type": "sub_scene", "question": "?", "answer": "He runs."}
    assert item.metadata["scoring_points"] == "a\nb"
