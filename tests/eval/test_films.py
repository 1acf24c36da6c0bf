"""Molmo2-CapEval: what the judge is asked of a video's caption, figures by category, failures, both readings."""

import json
from pathlib import Path
from typing import Any

import pytest
from judge_stand_in import StandIn, completion

from molmo_ds.cli import judge as command
from molmo_ds.data import sources
from molmo_ds.eval.captions import films

ROW = {
    "video_id": "v",
    "source": "vimeo",
    "video_start": 1.5,
    "video_end": 9.0,
    "atomic_statements": ["A man  runs.", "He wears red.", "He falls."],
    "statement_categories": ["Action", "Attribute", "Action"],
    "aggregated_caption": "A man in red runs and falls.",
}


def prediction(name: str, caption: str) -> dict[str, Any]:
    [item] = sources.get("molmo2_cap_eval").adapt(ROW, "test")
    return {"id": name, "prediction": caption, **item.metadata}


def judged(folder: Path, rows: list[dict], judge: StandIn, *more: str) -> dict[str, Any]:
    (folder / "predictions.json").write_text(json.dumps(rows))
    words = [str(folder), "--judge-model", "stand-in", "--judge-url", judge.url, *more]
    command.main(words)
    return json.loads((folder / "judge.json").read_text())


def test_what_the_judge_needs_reaches_the_predictions() -> None:
    [item] = sources.get("molmo2_cap_eval").adapt(ROW, "test")
    assert item.metadata["statements"] == "A man runs.\nHe wears red.\nHe falls."
    assert item.metadata["example_id"] == "v_1.5_9.0"
    [film] = films.read([prediction("a", " He runs. ")])
    assert film.categories == ("Action", "Attribute", "Action") and film.caption == "He runs."
    for name, value in (("statements", None), ("statement_categories", "Action")):
        with pytest.raises(ValueError, match="lacks its statements, as many categories"):
            films.read([{**prediction("a", "x"), name: value}])


def test_figures_failures_and_the_reading_of_the_reference(tmp_path: Path) -> None:
    """Replies are right for a, too short for b's recall, refused for d's kinds; c is empty and is not sent."""

    def behave(call: str, text: str, times: int) -> Any:
        if call == "kinds" and "runs" in text:
            return "1. He runs. | Action\n2. It is blue. | attribute\n3. It is sad | Mood"
        if call == "kinds" and "stands" in text:
            return completion("", "content_filter")
        return "1. Stated\n2. Not Stated" if call == "recall" and "sits" in text else None

    said = {"a": "He runs, it is blue", "b": "He sits", "c": " ", "d": "He stands"}
    rows = [prediction(name, caption) for name, caption in said.items()]
    with StandIn(behave) as judge:
        found = judged(tmp_path, rows, judge)
        calls = {"recall": 3, "claims": 3, "kinds": 3, "supported": 2}
        assert dict(judge.calls) == calls and set(judge.temperatures.values()) == {0}
        assert judged(tmp_path, rows, judge) == found  # from the cache
        assert dict(judge.calls) == calls
        with pytest.raises(ValueError, match="inputs_sha256 differ"):
            judged(tmp_path, rows[:1], judge)
    # of three statements the first and third are stated, of three facts too
    assert found["metrics"] == pytest.approx(
        {
            "recall": 100 * (2 / 3 + 0 + 2 / 3) / 3,
            "n_recall": 3,
            "consistency": 100 * (2 / 3 + 1) / 2,
            "n_consistency": 2,
            "cap_f1": 2 / (9 / 400 + 6 / 500),
            "avg": (400 / 9 + 500 / 6) / 2,
            "recall_Action": 100 * (1 + 0 + 1) / 3,
            "recall_Attribute": 0.0,
            "consistency_Action": 100.0,
            "consistency_Attribute": 0.0,
            "num_statements": 2.0,
            "without_category": 1,
        }
    )
    recall = 100 * (2 / 3 + 1 / 2 + 0 + 2 / 3) / 4
    consistency = 100 * (2 / 3 + 1 + 0 + 0) / 4
    assert found["by_line"]["recall"] == pytest.approx(recall)
    assert found["by_line"]["consistency"] == pytest.approx(consistency)
    assert [one["id"] for one in found["failures"]] == ["b", "d"]
    assert "recall: unreadable: 1 of 3 statements" in found["failures"][0]["reason"]
    assert found["failures"][1]["reason"].startswith("kinds: refused")


def test_categories_are_read_whatever_their_dress() -> None:
    reply = "1. A | b | **ocr**\n2) Two | Quantity/number.\n3. None"
    assert films.read_facts(reply) == [("A | b", "OCR"), ("Two", "Quantity/Number"), ("None", "")]
