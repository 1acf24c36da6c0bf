"""Which questions get a request not to point: results of both references' own code, and which rule is taken."""

import dataclasses

import pytest
from numpy.random import RandomState

from molmo_ds.config import PromptConfig
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sources import get
from molmo_ds.data.sources.source import LeftOut
from molmo_ds.data.wording.no_pointing import REQUESTS, asks_how_many

# as allenai/molmo2 f3cb108 says, run on these
COUNTING = [
    "How many cats?",
    "Tell me how many cats there are.",
    "Intro.\nhow many dogs",
    "howmany dogs",
    "count the cups",
    "Is it approximately how many dogs",
    "how many light years",
    "how many second",
    "how many feet",
    "Count all cups",
    "don't count all cups",
    "tally each cup",
    "there are ___ cups",
    "a total of ____ cups",
    "what number of cups",
    "what is the total number of cups?",
    "what's the exact count of cups",
    "states the precise num of cups",
]
OTHERS = [
    "how many\ncats",
    "how  many dogs",
    "somehow many dogs",
    "approximately how many dogs",
    "how many years",
    "how many Hours",
    "how many milliseconds",
    "how many kilometers",
    "how many square miles",
    "how many sq ft",
    "how many square feet",
    "how many inches",
    "how many more",
    "how many moreover",
    "how many seedlings",
    "how many tonsils",
    "how many ways",
    "how many!",
    "how many",
    "do not count all cups",
    "recount the cups",
    "tally cups",
    "a total of _____ cups",
    "what is the number of the cups?",
    "indicate the amount of money",
    "What were the total of hours",
    "what is the total count of dollars",
    "total number of cups",
]
# those of either list that begin with "how many" and have one line
EARLIER = [
    "How many cats?",
    "how many light years",
    "how many second",
    "how many feet",
    "how many years",
    "how many Hours",
    "how many milliseconds",
    "how many kilometers",
    "how many square miles",
    "how many sq ft",
    "how many square feet",
    "how many inches",
    "how many more",
    "how many moreover",
    "how many seedlings",
    "how many tonsils",
    "how many ways",
    "how many!",
    "how many",
]


def test_both_rules_are_the_references() -> None:
    assert [one for one in COUNTING + OTHERS if asks_how_many(one, later=True)] == COUNTING
    found = [one for one in COUNTING + OTHERS if asks_how_many(one)]
    assert sorted(found) == sorted(EARLIER)


@pytest.mark.parametrize(
    ("form", "question", "asked"),
    [
        ("percent", "How many cats?", True),
        ("percent", "So how many cats?", False),
        ("percent", "how many more?", True),
        ("html-v2", "How many cats?", True),
        ("html-v1", "So how many cats?", True),
        ("html-v2", "how many more?", False),
    ],
)
def test_the_form_of_points_decides_the_rule(form: str, question: str, asked: bool) -> None:
    row = {"image_url": "http://a", "question": question, "answer": "Two."}
    [item] = get("pixmo_ask_model_anything").adapt(row, "train")
    config = dataclasses.replace(
        PromptConfig(), system_prompt="none", message_format="none", pointing_format=form
    )
    formatter = PromptFormatter(config)
    rng = RandomState(3)
    drawn = REQUESTS[RandomState(3).randint(32)] if asked else ""
    [talk] = formatter.conversations(item.annotations, rng)
    assert talk.messages[0].strip() == (drawn + question).strip()


def test_marks_of_turns_are_no_text() -> None:
    """Of PixMo-CapQA the later loader reads question and answer, where marks stand between turns."""
    adapt = get("pixmo_cap_qa").adapt
    row = {"image_url": "http://a", "answer": " d"}
    row["question"] = "[USER] a\nb [ASSISTANT]b[USER]\nHow many c?\n[ASSISTANT]"
    [item] = adapt(row, "train")
    assert item.annotations == [
        {
            "style": "synthetic_qa",
            "messages": ["a\nb", "b", "How many c?", " d"],
            "no_pointing": True,
        }
    ]
    [item] = adapt({**row, "question": "Is it [red]?"}, "train")
    assert item.annotations[0]["messages"] == ["Is it [red]?", " d"]
    for question, why in (
        ("[USER]a[ASSISTANT][USER]b[ASSISTANT]", "empty turn"),
        ("[USER]a[ASSISTANT]b", "a text outside"),
        ("b[USER]a[ASSISTANT]", "a text outside"),
        ("[USER]a[USER]b[ASSISTANT]", "do not alternate"),
    ):
        with pytest.raises(LeftOut, match=why):
            adapt({**row, "question": question}, "train")
