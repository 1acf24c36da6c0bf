"""Annotations to messages: formats, draws, points; every expectation is worked out from the rules in prompts.py."""

import collections
import dataclasses

import numpy as np
import pytest
from numpy.random import RandomState

from molmo_ds.config import PromptConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.points import format_count, format_points, to_percent
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.wording.no_pointing import REQUESTS
from molmo_ds.data.wording.pictures import LONG_CAPTION, POINT_COUNT, POINTING

SFT = PromptFormatter(PromptConfig())
BARE = PromptFormatter(
    PromptConfig(
        prompt_templates="none",
        message_format="none",
        system_prompt="none",
        always_start_with_space=False,
    )
)
CAPTIONER = PromptFormatter(
    PromptConfig(prompt_templates="none", message_format="none", system_prompt="style_and_length")
)
STYLE = PromptFormatter(
    PromptConfig(
        prompt_templates="none",
        message_format="role",
        system_prompt="style",
        always_start_with_space=False,
    )
)


class Draws:
    """Stands in for a generator: hands out what it was given, and notes what it was asked for."""

    def __init__(self, *values: float):
        self.values, self.asked = list(values), []

    def random(self) -> float:
        self.asked.append("random")
        return self.values.pop(0)

    def randint(self, high: int) -> int:
        self.asked.append(high)
        return int(self.values.pop(0))

    def normal(self, scale: float) -> float:
        self.asked.append(("normal", scale))
        return self.values.pop(0)


def test_roles_spaces_and_styles() -> None:
    ask = {"style": "vqa2", "question": "Which colour?", "answer": "green"}
    assert SFT.messages(ask, Draws()) == [" User: vqa2: Which colour? Assistant:", " green"]
    assert STYLE.messages(ask, Draws()) == ["User: vqa2: Which colour? Assistant:", " green"]
    assert BARE.messages(ask, Draws()) == ["Which colour?", " green"]
    assert SFT.messages(ask, Draws(), inference=True) == [" User: vqa2: Which colour? Assistant:"]
    note = {"style": "transcript", "text": "er, a lamp"}
    assert SFT.messages(note, Draws()) == [" User: transcript: Assistant:", " er, a lamp"]
    assert BARE.messages({"text": "a lamp"}, Draws()) == ["", " a lamp"]


def test_only_evaluation_knows_some_styles() -> None:
    for style, known in (("eval_short_answer", "vqa2"), ("eval_multiple_choice", "a_okvqa_mc")):
        assert (
            SFT.messages({"style": style, "question": "Q", "answer": "A"}, Draws())[0]
            == f" User: {known}: Q Assistant:"
        )


@pytest.mark.parametrize("style", ["point_count", "pointing", "user_qa", "long_caption"])
def test_demo_styles_are_named_one_time_in_ten(style: str) -> None:
    ask = {"style": style, "question": "Say it", "answer": "It"}
    for draw, named in ((0.0, True), (0.1, True), (0.1001, False), (0.99, False)):
        for inference in (False, True):
            rng = Draws(draw)
            got = SFT.messages(ask, rng, inference=inference)[0]
            assert got == f" User: {style + ': ' if named else ''}Say it Assistant:"
            assert rng.asked == ["random"]


@pytest.mark.parametrize("style", ["android_control", "demo"])
def test_some_styles_are_never_named(style: str) -> None:
    rng = Draws()
    assert (
        SFT.messages({"style": style, "question": "Tap", "text": "ok"}, rng)[0]
        == " User: Tap Assistant:"
    )
    assert rng.asked == []


def test_length_of_the_answer_in_the_prompt() -> None:
    caption = {"style": "long_caption", "text": "x" * 100}
    for draws, want in {
        (0.5, 0.0): "6",  # 100 // 15
        (0.5, 19.9): "7",  # (100 + 19) // 15: the noise is truncated first
        (0.5, -10.9): "6",  # (100 - 10) // 15
        (0.5, -130.0): "-2",
        (0.1,): "",  # one in ten is not told
    }.items():
        rng = Draws(*draws)
        assert CAPTIONER.messages(caption, rng) == [f" long_caption {want}:", " " + "x" * 100]
        assert rng.asked == ["random", ("normal", 25)][: len(draws)]
    assert CAPTIONER.messages(caption, Draws(), inference=True) == [" long_caption 65:"]
    for length, want in ((None, ""), (80, "80")):
        one = PromptFormatter(dataclasses.replace(CAPTIONER.config, default_inference_len=length))
        assert one.messages(caption, Draws(), inference=True) == [f" long_caption {want}:"]
    # of a conversation the last answer's: allenai/molmo 793fa38, olmo/data/data_formatter.py, run with these seeds
    chat = {"style": "synthetic_qa", "messages": ["q1", "a1", "q2", "x" * 300]}
    for seed, want in ((1500, 20), (1501, 21)):
        assert CAPTIONER.messages(chat, RandomState(seed))[0] == f" synthetic_qa {want}: q1"


@pytest.mark.parametrize(
    ("style", "templates", "size"),
    [
        ("long_caption", LONG_CAPTION, 23),
        ("pointing", POINTING, 43),
        ("point_count", POINT_COUNT, 57),
    ],
)
def test_templates(style: str, templates: tuple[str, ...], size: int) -> None:
    # the reference's sizes, so that draws agree
    assert len(templates) == len(set(templates)) == size
    ask = {"style": style, "label": "Red Mug", "points": [[1, 1]], "point_scale": 100, "text": "t"}
    for i, template in enumerate(templates):
        rng = Draws(i, 0.5)
        assert (
            SFT.messages(ask, rng)[0]
            == f" User: {template.replace('{label}', 'red mug')} Assistant:"
        )
        assert rng.asked == [size, "random"]  # template, then system prompt
        assert ("{label}" in template) == (style != "long_caption") and template.count("{") <= 1
    rng = Draws(0.5)
    assert SFT.messages({**ask, "question": "Own words?"}, rng)[0] == " User: Own words? Assistant:"
    assert rng.asked == ["random"]  # a question of its own draws no template
    assert BARE.messages(ask, Draws())[0] == ("" if style == "long_caption" else "red mug")


def test_answer_lists() -> None:
    ask = {"style": "vqa2", "question": "Q", "answers": ["b", "a", "a", "c", "c"]}
    for draw, want in enumerate(["a", "c"]):  # those most given, in order of first appearance
        rng = Draws(draw)
        assert SFT.messages(ask, rng)[1] == " " + want
        assert rng.asked == [2]
    assert SFT.messages({**ask, "answers": ["b", "a", "a"]}, Draws())[1] == " a"
    assert SFT.messages({**ask, "answers": "one text"}, Draws())[1] == " one text"
    found = collections.Counter(SFT.messages(ask, RandomState(i))[1] for i in range(400))
    assert set(found) == {" a", " c"} and abs(found[" a"] - 200) < 50  # 5 sigma


def test_multiple_choice() -> None:
    ask = {
        "style": "a_okvqa_mc",
        "question": "What now?",
        "options": ["run", "sit", "eat"],
        "answer_index": 1,
    }
    lettered = " User: a_okvqa_mc: What now?\nA: run\nB: sit\nC: eat\n Assistant:"
    assert SFT.messages(ask, Draws()) == [lettered, " B"]
    plain = " User: a_okvqa_mc: What now?\nrun\nsit\neat\n Assistant:"
    assert SFT.messages({**ask, "unlabelled": True}, Draws()) == [plain, " sit"]
    unknown = {k: v for k, v in ask.items() if k != "answer_index"}
    assert SFT.messages(unknown, Draws(), inference=True) == [lettered]
    for wrong, words in (
        ({"answer_index": 3}, "none of 3"),
        ({"options": ["o"] * 27}, "A to Z"),
        ({"options": []}, "A to Z"),
    ):
        with pytest.raises(BadSample, match=words):
            SFT.messages({**ask, **wrong}, Draws())


def test_points_are_percent_rounded_sorted() -> None:
    points = [[640.0, 20.0], [32.0, 100.26], [31.8, 1.0], [640.0, 20.0]]
    got = to_percent(points, None, (640, 200))
    # x ties by y; duplicates stay
    assert got.tolist() == [[5.0, 0.5], [5.0, 50.1], [100.0, 10.0], [100.0, 10.0]]
    assert to_percent([[0.123, 0.5]], 1, None).tolist() == [[12.3, 50.0]]
    assert to_percent([[123.0, 500.0]], 1000, None).tolist() == [[12.3, 50.0]]
    assert to_percent([], None, None).shape == (0, 2)
    assert points[0] == [640.0, 20.0]  # the record is not written to
    with pytest.raises(BadSample, match="point_scale"):
        to_percent(points, None, None)
    for wrong in ([[1, 2, 3]] * 2, [1, 2], [["a", "b"]], [[1, 2], [3]], [[float("nan"), 1]]):
        with pytest.raises(BadSample, match="pairs of numbers"):
            to_percent(wrong, 100, None)
    with pytest.raises(BadSample, match="above 0"):
        to_percent(points, 0, None)


def test_points_as_text() -> None:
    one = np.array([[1.0, 2.5]])
    two = np.array([[1.0, 2.5], [30.0, 4.0]])
    none = np.zeros((0, 2))
    assert format_points(one, "mug") == '<point x="1.0" y="2.5" alt="mug">mug</point>'
    assert (
        format_points(two, "mug", "those")
        == '<points x1="1.0" y1="2.5" x2="30.0" y2="4.0" alt="mug">those</points>'
    )
    assert (
        format_count(two, "mug") == f"Counting the {format_points(two, 'mug')} shows a total of 2."
    )
    assert format_points(none, "mug") == format_count(none, "mug") == "There are none."


def test_pointing_and_counting() -> None:
    ask = {"style": "pointing", "label": "Red Mug", "points": [[10, 20]]}
    point = '<point x="{}" y="{}" alt="{}">{}</point>'
    assert BARE.messages(ask, Draws(), (40, 40))[1] == " " + point.format(
        "25.0", "50.0", "red mug", "red mug"
    )
    counted = {**ask, "style": "point_count", "point_scale": 100}
    want = f" Counting the {point.format('10.0', '20.0', 'red mug', 'red mug')} shows a total of 1."
    assert BARE.messages(counted, Draws())[1] == want
    asked = {
        "style": "pointing",
        "question": "Where's Bo?",
        "points": [[10, 20]],
        "point_scale": 100,
    }
    assert BARE.messages(asked, Draws()) == [
        "Where's Bo?",
        " " + point.format("10.0", "20.0", *["Where's Bo?"] * 2),
    ]


def test_points_inside_an_answer() -> None:
    groups = [
        {"points": [[5, 5]], "alt": "the tap", "text": "this tap"},
        {"points": [[2, 2], [1, 1]], "alt": "leaks"},
    ]
    ask = {
        "style": "point_qa",
        "question": "Why wet?",
        "answer": "From <|POINT|> via <|POINT|>.",
        "point_scale": 100,
    }
    want = (
        ' From <point x="5.0" y="5.0" alt="the tap">this tap</point> via'
        ' <points x1="1.0" y1="1.0" x2="2.0" y2="2.0" alt="leaks">leaks</points>.'
    )
    assert SFT.messages({**ask, "inline_points": groups}, Draws())[1] == want
    with pytest.raises(BadSample, match="inline_points 1"):
        SFT.messages({**ask, "inline_points": groups[:1]}, Draws())


def test_chats() -> None:
    chat = {"style": "synthetic_qa", "messages": ["hi", "yes?", "who?", "a cat"]}
    # the style once
    asked = [" User: synthetic_qa: hi Assistant:", " yes?", " User: who? Assistant:"]
    assert SFT.messages(chat, Draws()) == [*asked, " a cat"]
    for turns in (3, 4):  # a chat that ends with the user, or whose last answer is not to be shown
        assert (
            SFT.messages({**chat, "messages": chat["messages"][:turns]}, Draws(), inference=True)
            == asked
        )
    for turns in (0, 3):
        with pytest.raises(BadSample, match="alternate"):
            SFT.messages({**chat, "messages": chat["messages"][:turns]}, Draws())


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ({"style": "vqa2", "question": "Q"}, "nothing to learn"),
        ({"question": "Q", "answer": "A"}, "no style"),
        (
            {"style": "pointing", "points": [[1, 1]], "point_scale": 100},
            "neither label nor question",
        ),
        ({"style": "vqa2", "question": "Q", "answers": []}, "nothing to learn"),
    ],
)
def test_annotations_that_lack_something(annotation: dict, words: str) -> None:
    with pytest.raises(BadSample, match=words):
        SFT.messages(annotation, RandomState(0))


def test_weights_and_order() -> None:
    annotations = [{"style": "vqa2", "question": str(i), "answer": "a"} for i in range(4)]
    annotations[3]["weight"] = 3.0
    got = SFT.conversations(annotations, RandomState(5))
    by_question = {c.messages[0].split()[2]: c.weight for c in got}
    # 1 / sqrt(4), times its own weight
    assert by_question == {"0": 0.5, "1": 0.5, "2": 0.5, "3": 1.5}
    orders = {
        tuple(c.messages[0] for c in SFT.conversations(annotations, RandomState(i)))
        for i in range(40)
    }
    assert len(orders) > 10
    still = PromptFormatter(
        dataclasses.replace(SFT.config, shuffle_messages=False, root_subsegments=False)
    )
    got = still.conversations(annotations, RandomState(5))
    assert [c.messages[0].split()[2] for c in got] == list("0123") and got[0].weight == 1.0
    with pytest.raises(BadSample, match="no annotations"):
        SFT.conversations([], RandomState(0))


def test_equal_generators_draw_equal_prompts() -> None:
    """Also a check of the draws' order: template, answer, system prompt of each annotation, then the shuffle."""
    annotations = [
        {"style": "pointing", "label": "cup", "points": [[1, 2]], "point_scale": 100},
        {"style": "vqa2", "question": "Q", "answers": ["x", "y", "z"]},
    ]
    for seed in range(20):
        got = SFT.conversations(annotations, RandomState(seed))
        rng = RandomState(seed)
        template = POINTING[rng.randint(43)].format(label="cup")
        style = "" if rng.random() > 0.1 else "pointing: "
        answer = ["x", "y", "z"][rng.randint(3)]
        order = [0, 1]
        rng.shuffle(order)
        want = [
            [
                f" User: {style}{template} Assistant:",
                ' <point x="1.0" y="2.0" alt="cup">cup</point>',
            ],
            [" User: vqa2: Q Assistant:", f" {answer}"],
        ]
        assert [c.messages for c in got] == [want[i] for i in order]


def test_questions_how_many_begin_with_a_drawn_request_not_to_point() -> None:
    assert len(REQUESTS) == 32  # as the reference's list
    annotations = [
        {"style": "pointing", "label": "cup", "points": [], "point_scale": 100},
        {
            "style": "synthetic_qa",
            "messages": ["Hi", "a", "How many?", "b", "how many\nthere", "c", "HOW MANY", "d"],
            "no_pointing": True,
        },
        {"style": "vqa2", "question": "How many?", "answer": "2"},
        {"style": "vqa2", "question": "How many?", "answer": "2", "no_pointing": True},
    ]
    still = PromptFormatter(dataclasses.replace(SFT.config, shuffle_messages=False))
    # the requests of all annotations are drawn first: two of the second, one of the fourth
    draws = Draws(3, 0, 31, 7, 0.5)
    pointing, talk, plain, asked = still.conversations(annotations, draws)
    assert draws.asked == [32, 32, 32, 43, "random"]
    assert talk.messages[0] == " User: synthetic_qa: Hi Assistant:"
    assert talk.messages[2] == f" User: {REQUESTS[3]}How many? Assistant:"
    assert talk.messages[4] == " User: how many\nthere Assistant:"  # the rule is for one line
    assert talk.messages[6] == f" User: {REQUESTS[0]}HOW MANY Assistant:"
    assert plain.messages[0] == " User: vqa2: How many? Assistant:"
    assert asked.messages[0] == f" User: vqa2: {REQUESTS[31]}How many? Assistant:"
    assert POINTING[7].format(label="cup") in pointing.messages[0]
    question = SFT.messages(annotations[3], Draws(5), inference=True)
    assert question == [f" User: vqa2: {REQUESTS[5]}How many? Assistant:"]


def test_answers_that_explain_themselves_are_asked_for() -> None:
    ask = {"style": "cosyn_chart_exp", "question": "Sum?", "answer": "2 + 2. Answer: 4"}
    want = " User: cosyn_chart_exp: Sum? Give your reasoning in steps, and the short answer at the end. Assistant:"
    assert SFT.messages(ask, Draws())[0] == want
    assert STYLE.messages(ask, Draws())[0] == "User: cosyn_chart_exp: Sum? Assistant:"
