"""Annotations to messages as the reference's DataFormatter writes them (C_text/data_formatter.json).

Templates are words of our own, so that of a question drawn from them only what surrounds it is compared; the answers,
and how many random numbers were drawn, are compared of every row.
"""

from typing import Any

import numpy as np
import pytest
from golden_files import listed, read_json
from numpy.random import RandomState

from molmo_ds.config import PromptConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.prompts import PromptFormatter

FILE = "C_text/data_formatter.json"
# a setting of its formatter that we have not: the first of several answers instead of the commonest
FIRST_ANSWER = "select_answer"
RENAMED = {"answer_idx": "answer_index", "label_cased": "label", "prompt": "question"}
# what the reference can only fail at, and is right: a label that keeps its capitals, turns whose length is told
# (its later code tells that of the last one), a question whose answer is not asked for
MORE = ("label_cased_only", "synthetic_messages")


def annotation(example: dict[str, Any]) -> dict[str, Any]:
    """The reference's example in our keys."""
    ours: dict[str, Any] = {}
    for key, value in example.items():
        if key in ("image", "__infer_only__"):
            continue
        if isinstance(value, dict):  # an array
            [(kind, numbers)] = value.items()
            dtype = np.float32 if kind == "__points_f32__" else np.float64
            value = np.array(numbers, dtype).reshape(-1, 2).tolist()
        if key == "answer_annotations":
            ours["inline_points"] = [
                {"points": one["points"], "alt": one["alt_text"], "text": one["inline_text"]}
                for one in value
            ]
            ours["point_scale"] = 100
        elif key == "unlabelled_options":
            ours |= {"options": value, "unlabelled": True}
        elif key == "answer_with_points":
            ours["answer"] = value
        elif key == "answers" and isinstance(value, str):
            ours["answers"] = [value]
        else:
            ours[RENAMED.get(key, key)] = value
    return ours


def size_of(example: dict[str, Any]) -> tuple[int, int] | None:
    """(width, height) of its picture."""
    if "image" not in example:
        return None
    height, width = example["image"]["__image_hw__"]
    return width, height


def written(formatter: PromptFormatter, example: dict, inference: bool, rng: RandomState) -> Any:
    """Our messages: a list of texts, or of such lists where the example has several annotations."""
    if "message_list" not in example:
        return formatter.messages(annotation(example), rng, size_of(example), inference)
    several = [annotation(one) for one in example["message_list"]]
    return [formatter.messages(one, rng, size_of(example), inference) for one in several]


def templated(example: dict[str, Any]) -> bool:
    """Whether its question is drawn from templates."""
    return not {"question", "prompt", "messages"} & example.keys()


def of_another_rule(settings: dict[str, Any], example: dict[str, Any], inference: bool) -> bool:
    """Whether the reference makes another text: by FIRST_ANSWER, or as it leaves a conversation's last answer in what
    is asked."""
    for one in example.get("message_list", [example]):
        if FIRST_ANSWER in settings and isinstance(one.get("answers"), list):
            return True
        if inference and "messages" in one:
            return True
    return False


def surroundings(question: str, template: bool) -> tuple[bool, str, str] | str:
    """A question as it is; of one that was drawn, how it begins and ends."""
    if not template:
        return question
    begin = " User:" if question.startswith(" User:") else question[:1].strip()
    return question.startswith(" "), begin, question[-11:] if "Assistant:" in question else ""


@pytest.mark.parametrize("name", listed(FILE, "formatters"))
def test_messages_and_draws(name: str) -> None:
    golden = read_json(FILE)
    settings = golden["formatters"][name]
    if settings.get("debug"):
        pytest.skip(f"{name} draws nothing (debug), a setting that we have not")
    known = {key: value for key, value in settings.items() if key != FIRST_ANSWER}
    formatter = PromptFormatter(PromptConfig(**known))
    compared = 0
    for row in golden["rows"]:
        example = golden["examples"][row["example"]]
        if row["formatter"] != name or of_another_rule(settings, example, row["for_inference"]):
            continue
        compared += 1
        place = name, row["example"], row["for_inference"], row["seed"]
        rng = RandomState(row["seed"])
        if "raises" in row:
            if row["example"] not in MORE:
                with pytest.raises(BadSample):
                    written(formatter, example, row["for_inference"], rng)
            continue
        ours = written(formatter, example, row["for_inference"], rng)
        drawn = settings["prompt_templates"] != "none"
        theirs_of_all = row["messages"]
        if "message_list" not in example:
            ours, theirs_of_all = [ours], [theirs_of_all]
        examples = example.get("message_list", [example])
        for one, mine, theirs in zip(examples, ours, theirs_of_all, strict=True):
            template = drawn and templated(one)
            assert surroundings(mine[0], template) == surroundings(theirs[0], template), place
            assert mine[1:] == theirs[1:], place
        assert int(rng.randint(0, 2**31 - 1)) == row["rng_after"], place
    assert compared
