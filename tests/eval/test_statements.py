"""A judge's replies read by number, and by line as the reference does; what the files of captions may hold."""

import json
from pathlib import Path

import pytest
from numpy.random import RandomState

from molmo_ds.config import PromptConfig
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.wording.pictures import LONG_CAPTION
from molmo_ds.eval import results
from molmo_ds.eval.captions import inputs, prompts
from molmo_ds.eval.captions.statements import (
    CONSISTENT,
    STATED,
    Unreadable,
    read_claims,
    read_repeating,
    verdicts,
)
from molmo_ds.eval.metrics.dense_caption import read_recall
from molmo_ds.eval.row import Row


@pytest.mark.parametrize(
    "reply",
    [
        "1. Stated\n2. Not Stated\n3. Stated",
        "3. stated\n1. STATED\n2. not stated",  # by number, not by line
        "Here is the list:\n\n1) Stated.\n2) Not Stated.\n3) Stated (a red one)\n",
        "**1.** Stated\n- 2: *Not Stated*\n3 - `Stated`",
    ],
)
def test_verdicts_go_by_number(reply: str) -> None:
    assert verdicts(reply, 3, STATED) == [True, False, True]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("", r"2 of 2 statements have no verdict, the first is 1\."),
        ("Stated\nStated", "2 of 2 statements have no verdict"),
        ("1. Stated", "1 of 2 statements have no verdict, the first is 2"),
        ("1. Stated\n2. Stated\n3. Stated", "a verdict 3, but 2 statements"),
        ("1. Stated\n1. Not Stated", "Statement 1 has two verdicts"),
        (
            "1. Stated\n2. Partially stated",
            "Statement 2 is judged 'Partially stated', not Stated or Not Stated",
        ),
        ("1. Stated\n2. Not Stated or Stated", "Statement 2 is judged"),
        ("0. Stated\n1. Stated\n2. Stated", "a verdict 0"),
    ],
)
def test_what_is_not_one_verdict_each_is_unreadable(reply: str, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        verdicts(reply, 2, STATED)


def test_both_readings_where_they_differ() -> None:
    """`Not Stated.` with a full stop counts as stated in the reference, and so in published figures."""
    reply = "1. Not Stated.\n2. Stated"
    assert verdicts(reply, 2, STATED) == [False, True]
    assert read_recall(reply) == [True, True]


def test_consistency_claims_and_repetition() -> None:
    assert verdicts("1. Inconsistent (it is red)\n2. Consistent", 2, CONSISTENT) == [False, True]
    with pytest.raises(Unreadable, match="judged 'Mostly consistent'"):
        verdicts("1. Mostly consistent", 1, CONSISTENT)
    assert read_claims("Claims:\n1. A dog is there.\n2. It is 3. in line.\n") == [
        "A dog is there.",
        "It is 3. in line.",
    ]
    with pytest.raises(Unreadable, match="no numbered claim in 'I cannot do that"):
        read_claims("I cannot do that.")
    assert read_repeating("Yes.") and not read_repeating(" no\n")
    for reply in ("maybe", "Yes and no", ""):
        with pytest.raises(Unreadable, match="not Yes or No"):
            read_repeating(reply)


def test_prompts_number_the_lists() -> None:
    [message] = prompts.consistency(["one", "two"], ["A dog\nis there.", "A cat."])
    assert (
        "1. A dog is there.\n2. A cat." in message["content"]
        and message["content"].count("<transcript>") == 2
    )
    assert "Answer with 2 numbered lines" in message["content"]


GOOD = {
    "image_url": "http://p/1.jpg",
    "transcripts": ["I see a dog."],
    "statements": ["A dog is there."],
}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 2: it is no JSON object"),
        ([], "line 2: it is no JSON object"),
        ({**GOOD, "id": "1"}, "line 2: name the picture by image_url or by id, one of them"),
        ({**GOOD, "image_url": ""}, "line 2: image_url is ''"),
        ({**GOOD, "statement": []}, "line 2: there is a field 'statement'"),
        ({**GOOD, "statements": []}, "line 2: 'statements' is missing or empty"),
        (
            {**GOOD, "transcripts": "I see"},
            "line 2: 'transcripts' is missing or empty; it is a list",
        ),
        (
            {**GOOD, "transcripts": [" "]},
            "line 2: 'transcripts' holds something else than texts, or an empty one",
        ),
        (GOOD, "line 2: http://p/1.jpg has a reference already"),
        (
            {"id": 7, **{k: GOOD[k] for k in inputs.FIELDS}},
            "line 2: name all pictures by image_url or all by id",
        ),
    ],
)
def test_references_are_checked(tmp_path: Path, row: object, said: str) -> None:
    file = tmp_path / "references.jsonl"
    file.write_text(
        json.dumps(GOOD) + "\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n"
    )
    with pytest.raises(ValueError, match=f"references.jsonl, {said}"):
        inputs.read_references(file)


def test_references_by_id_and_captions(tmp_path: Path) -> None:
    file = tmp_path / "references.jsonl"
    file.write_text('{"id": 7, "transcripts": ["a\u2028"], "statements": ["b", "c"]}\n\n')
    key, [reference] = inputs.read_references(file)
    assert (key, reference) == ("id", inputs.Reference("7", ("a\u2028",), ("b", "c")))
    (tmp_path / "predictions.json").write_text('[{"example_id": 7, "prediction": " A dog. "}]')
    assert inputs.read_captions(tmp_path, key) == {"7": "A dog."}
    with pytest.raises(
        ValueError, match="row 0: there is no image_url, which the references go by"
    ):
        inputs.read_captions(tmp_path, "image_url")
    (tmp_path / "predictions.json").write_text(
        '[{"id": "7", "prediction": "A"}, {"id": 7, "prediction": "B"}]'
    )
    with pytest.raises(ValueError, match="7 has two different captions"):
        inputs.read_captions(tmp_path, key)


@pytest.mark.parametrize("key", inputs.KEYS)
def test_captions_of_an_evaluation_are_found(tmp_path: Path, key: str) -> None:
    row = Row(
        id="t:s:7", index=0, picture="p", annotation={}, metadata={"image_url": "http://p/7.jpg"}
    )
    scored = {"reply": "A dog.", "tokens": 3, "prompt": "long_caption 65:"}
    (tmp_path / "predictions.json").write_text(json.dumps([results.prediction(row, scored)]))
    found = inputs.read_captions(tmp_path, key)
    assert found == {"http://p/7.jpg" if key == "image_url" else "t:s:7": "A dog."}


def test_a_missing_caption_is_an_error_unless_partial() -> None:
    references = [inputs.Reference(name, ("a",), ("b",)) for name in "xyz"]
    with pytest.raises(
        ValueError, match="2 of 3 pictures have no caption, the first is y; .*--partial"
    ):
        inputs.pair(references, {"x": "A dog."}, partial=False)
    assert [task.caption for task in inputs.pair(references, {"x": "A dog."}, partial=True)] == [
        "A dog."
    ]
    with pytest.raises(ValueError, match="No picture has a caption, for example x"):
        inputs.pair(references, {}, partial=True)
    with pytest.raises(ValueError, match="--sample is 4, but there are 3"):
        inputs.sample(references, 4)


def test_the_prompt_follows_the_checkpoint() -> None:
    """A captioner is asked by style and length, an instructed model by one of the caption templates."""
    captioner = PromptConfig(
        prompt_templates="none", message_format="none", system_prompt="style_and_length"
    )
    asked = PromptFormatter(captioner).messages(
        {"style": "long_caption"}, RandomState(0), inference=True
    )
    assert [text.strip() for text in asked] == ["long_caption 65:"]
    for seed in range(5):
        [asked] = PromptFormatter(PromptConfig()).messages(
            {"style": "long_caption"}, RandomState(seed), inference=True
        )
        words = (
            asked.removeprefix(" User: ").removesuffix(" Assistant:").removeprefix("long_caption: ")
        )
        assert words in LONG_CAPTION
