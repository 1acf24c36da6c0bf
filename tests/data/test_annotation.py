"""The one checked annotation: what is null is absent, what is wrong is a sentence, both forms of a conversation."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import RandomState

from molmo_ds.config import PromptConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.annotation import KEYS, read_annotation
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sample.review import Review

BARE = {"prompt_templates": "none", "message_format": "none", "system_prompt": "none"}
PLAIN = PromptFormatter(PromptConfig(**BARE, always_start_with_space=False))
ASK = {"style": "vqa2", "question": "Which?", "answer": "a boat"}
CHOICE = {"style": "a_okvqa_mc", "question": "Which?", "options": ["cat", "dog"], "answer_index": 1}
POINT = {"style": "pointing", "label": "boat", "points": [[10, 20]], "point_scale": 100}
INLINE = {"style": "point_qa", "question": "Q", "answer": "by <|POINT|>", "point_scale": 100}
INLINE["inline_points"] = [{"points": [[1, 2]], "alt": "x"}]
NOT_A_NUMBER = float("nan")


def learnt(annotation: dict[str, Any], size: tuple[int, int] | None = (100, 50)) -> list[str]:
    return [text.strip() for text in PLAIN.messages(annotation, RandomState(0), size)]


@pytest.mark.parametrize(
    "annotation", [ASK, CHOICE, POINT, INLINE], ids=["answer", "options", "points", "inline"]
)
@pytest.mark.parametrize("empty", [None, NOT_A_NUMBER], ids=["null", "nan"])
def test_an_empty_cell_is_no_key(annotation: dict[str, Any], empty: float | None) -> None:
    numbers = ("weight", "points", "point_scale", "answer_index")
    filled = {key: empty for key in KEYS if empty is None or key not in numbers} | annotation
    assert learnt(filled) == learnt(annotation)
    assert read_annotation(filled) == read_annotation(annotation)


WRONG = [
    (
        "answer_index",
        "B",
        "'answer_index' is the text 'B', but must be a whole number, 0 for the first option",
    ),
    ("answer_index", 1.0, "'answer_index' is the number 1.0"),
    ("answer_index", True, "'answer_index' is True"),
    ("answer_index", -1, "'answer_index' is the number -1"),
    ("answer_index", 2, "'answer_index' 2 points at none of 2 options"),
    ("answer_index", NOT_A_NUMBER, "'answer_index' is the number nan"),
    ("options", "Yes/No", "'options' is the text 'Yes/No', but must be a list of texts"),
    ("options", "['cat', 'dog']", "'options' is the text"),
    ("options", ["cat", 3], "'options' is the list"),
    ("options", ["cat", None], "'options' is the list"),
    ("unlabelled", "no", "'unlabelled' is the text 'no', but must be true or false"),
    ("answers", 5, "'answers' is the number 5, but must be a list of texts"),
    ("answers", ["a", NOT_A_NUMBER], "'answers' is the list"),
    ("answers", {"a": 1}, "'answers' is the object"),
    (
        "answer",
        ["boat", "ship"],
        "'answer' is the list .*several people's answers go into 'answers'",
    ),
    ("answer", 5, "'answer' is the number 5"),
    ("answer", False, "'answer' is False"),
    ("answer", b"boat", "'answer' is of type bytes"),
    ("answer", "half a \ud83d", "'answer' is the text 'half a"),
    ("answer", " \n", "An answer is empty"),
    ("answer", "at <|POINT|>", "there are no inline_points"),
    ("text", "", "An answer is empty"),
    ("question", 7, "'question' is the number 7"),
    ("style", ["vqa2"], "'style' is the list"),
    (
        "weight",
        NOT_A_NUMBER,
        "'weight' is the number nan, but must be a number from 0.000001 to 1,000,000",
    ),
    ("weight", math.inf, "'weight' is the number inf"),
    ("weight", 0, "'weight' is the number 0"),
    ("weight", 1e-300, "'weight' is the number 1e-300"),
    ("weight", -1.0, "'weight' is the number -1.0"),
    ("weight", 1e9, "'weight' is the number 1000000000.0"),
    ("weight", "1", "'weight' is the text '1'"),
    ("weight", True, "'weight' is True"),
    ("weight", 10**400, "'weight' is the number 1000"),
    ("point_scale", "100", "'point_scale' is the text '100'"),
    ("point_scale", 0, "'point_scale' is the number 0"),
    ("point_scale", NOT_A_NUMBER, "'point_scale' is the number nan"),
    ("points", [["10", "20"]], "'points' is the list .*pairs"),
    ("points", [[1, 2, 3]], "'points' is the list"),
    ("points", [1, 2], "'points' is the list"),
    ("points", [[1, True]], "'points' is the list"),
    ("points", [[1, NOT_A_NUMBER]], "'points' is the list"),
    ("points", [{"x": 1, "y": 2}], "'points' is the list"),
    ("points", "[[1, 2]]", "'points' is the text"),
    ("label", " ", "'label' is the text ' ', but must be a text that is not empty"),
    ("inline_points", [{"alt": "boat"}], "'inline_points' is the list .*points, alt, text"),
    ("inline_points", [None], "'inline_points' is the list"),
    ("inline_points", {}, "'inline_points' is the object"),
    (
        "messages",
        "What is it? A boat.",
        "'messages' is the text .*list of texts, of {role, content}",
    ),
]


@pytest.mark.parametrize(("key", "value", "sentence"), WRONG)
def test_a_wrong_value_is_one_sentence_that_names_the_key(
    key: str, value: Any, sentence: str
) -> None:
    base = {
        "options": CHOICE,
        "answer_index": CHOICE,
        "unlabelled": CHOICE,
        "points": POINT,
        "point_scale": POINT,
    }
    base |= {"label": POINT, "inline_points": INLINE}
    annotation = dict(base.get(key, ASK))
    if key in ("text", "answers"):
        del annotation["answer"]
    # right but for the key
    assert learnt(annotation | ({"answer": "a"} if key in ("text", "answers") else {}))
    with pytest.raises(BadSample, match=sentence) as error:
        learnt(annotation | {key: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [None, "a boat", 5, [ASK], NOT_A_NUMBER])
def test_an_annotation_is_an_object(value: Any) -> None:
    with pytest.raises(BadSample, match="An annotation is .*but must be an object"):
        PLAIN.conversations([value], RandomState(0))
    with pytest.raises(BadSample, match="annotation 2 of 2: An annotation is"):
        PLAIN.conversations([ASK, value], RandomState(0))


def test_all_mistakes_at_once() -> None:
    with pytest.raises(BadSample, match="'question' is the number 1.*; 'weight' is the text 'x'"):
        read_annotation(ASK | {"question": 1, "weight": "x"})


ROLES = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "A boat."}]
SHARE = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "A boat."}]
PARTS = [{"type": "text", "text": "Whi", "image": None}, {"type": "text", "text": "ch?"}]


@pytest.mark.parametrize(
    "chat",
    [
        {"messages": ["Which?", "A boat."]},
        {"messages": ROLES},
        {"conversations": SHARE},
        {"conversations": ROLES, "messages": None},
        {"messages": [{"role": "User", "content": PARTS, "tool_calls": None}, ROLES[1]]},
    ],
)
def test_forms_of_a_conversation(chat: dict[str, Any]) -> None:
    assert learnt({"style": "user_qa"} | chat) == ["Which?", "A boat."]
    assert read_annotation(chat).pictures is None


@pytest.mark.parametrize("mark", ["<image>", "<image>\n", " <image> ", "<video>\n"])
def test_a_leading_mark_is_the_pictures_place(mark: str) -> None:
    for chat in (
        {"messages": [{"role": "user", "content": mark + "Which?"}, ROLES[1]]},
        {"conversations": [{"from": "human", "value": mark + "Which?"}, SHARE[1]]},
        {"messages": [mark + "Which?", "A boat."]},
        {"question": mark + "Which?", "answer": "A boat."},
    ):
        assert learnt(chat) == ["Which?", "A boat."]
        assert read_annotation(chat).pictures == 1
        record = {"images": ["jpg"], "sizes": [(9, 9)], "annotations": [chat]}
        Review().add(record)
        for images, count in (([], 0), (["0.jpg", "1.jpg"], 2)):
            with pytest.raises(
                BadSample, match=f"begins with 1 picture marks .*the sample has {count}"
            ):
                Review().add({"images": images, "sizes": [(9, 9)] * count, "annotations": [chat]})


def test_pictures_as_parts() -> None:
    shown = {"type": "image_url", "image_url": {"url": "x"}}
    first = [{"role": "user", "content": [{"type": "image"}, shown, *PARTS]}, ROLES[1]]
    assert (
        read_annotation({"messages": first}).pictures == 2
        and learnt({"messages": first})[0] == "Which?"
    )
    later = [{"role": "user", "content": [PARTS[0], {"type": "image"}, PARTS[1]]}, ROLES[1]]
    assert learnt({"messages": later})[0] == "Whi<|image|>ch?"
    last = [*ROLES, {"role": "user", "content": "And <image>?"}, ROLES[1]]
    assert learnt({"messages": last})[2] == "And <|image|>?"
    with pytest.raises(BadSample, match="has a place for a picture .*no picture"):
        Review().add({"images": [], "annotations": [{"style": "x", "messages": last}]})


TURNS = [
    ([{"role": "system", "content": "Be kind."}, *ROLES], "messages\\[0\\]' is a system turn"),
    ([ROLES[0], ROLES[0], ROLES[1]], "messages\\[1\\]' is the user's where the assistant's is due"),
    ([ROLES[1], ROLES[0]], "messages\\[0\\]' is the assistant's where the user's is due"),
    ([ROLES[0]], "must alternate user and assistant and end with the assistant"),
    ([], "must alternate"),
    (
        [*ROLES, {"role": "tool", "content": "5"}],
        "has the role the text 'tool'; it must be one of user",
    ),
    ([ROLES[0], {"role": "assistant", "content": None}], "messages\\[1\\]' has no content"),
    ([ROLES[0], {"role": "assistant", "content": ""}], "An answer is empty"),
    ([ROLES[0], {"role": "assistant", "content": "x", "tool_calls": [{}]}], "has tool_calls"),
    ([ROLES[0], {"role": "assistant", "content": "x", "weight": 0}], "has a weight of its own"),
    (
        [ROLES[0], {"role": "assistant", "content": "x", "loss": False}],
        "of its own \\('loss' is False",
    ),
    (
        [ROLES[0], {"role": "assistant", "content": "x", "loss_scale": 0.5}],
        "own \\('loss_scale' is the number",
    ),
    (
        [ROLES[0], {"role": "assistant", "content": "x", "train": False}],
        "of its own \\('train' is False",
    ),
    (
        [{"role": "user", "content": "See. <video> Who?"}, ROLES[1]],
        "has <video> after its first word",
    ),
    (
        [*ROLES, {"from": "human", "value": "<video>And?"}, ROLES[1]],
        "has <video> after its first word",
    ),
    (
        [ROLES[0], {"role": "assistant", "content": [{"type": "image"}]}],
        "only the user can show one",
    ),
    ([{"role": "user", "content": [{"type": "audio"}]}, ROLES[1]], "a part has type text"),
    ([{"role": "user", "content": 5}, ROLES[1]], "content' is|content is the number 5"),
    ([{"content": "x"}, ROLES[1]], "needs role and content"),
    (["Which?", ROLES[1]], "'messages' holds the text 'Which\\?'"),
    (["Which?", None], "'messages' holds null"),
    ([5, 6], "'messages' holds the number 5"),
]


@pytest.mark.parametrize(("messages", "sentence"), TURNS)
def test_turns_that_cannot_be_learnt(messages: list[Any], sentence: str) -> None:
    with pytest.raises(BadSample, match=sentence):
        learnt({"style": "user_qa", "messages": messages})


def test_what_a_turn_says_besides_its_text() -> None:
    """A user's turn is not learnt in any case; whatever nobody reads is counted."""
    asked = ROLES[0] | {"loss": False, "weight": 0}
    told = ROLES[1] | {"loss": True, "reasoning_content": "It floats.", "name": "A"}
    annotation = {"style": "user_qa", "messages": [asked, told]}
    assert learnt(annotation) == learnt({"style": "user_qa", "messages": [ROLES[0], ROLES[1]]})
    review = Review()
    review.add({"images": ["jpg"], "sizes": [(100, 50)], "annotations": [annotation]})
    assert review.unread == {"name of a turn": 1, "reasoning_content of a turn": 1}


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (ASK | {"text": "A page of a book."}, [("answer", "text")]),
        ({"messages": ["Which?", "A boat."], "answer": "a boat"}, [("answer", "messages")]),
        (POINT | {"answer": "1"}, [("answer", "points")]),
        (ASK | {"answers": ["a boat", "boat"]}, []),
        (CHOICE | {"answer": "dog"}, []),
        (INLINE, []),
    ],
)
def test_an_answer_that_another_one_replaces_is_said(
    annotation: dict[str, Any], said: list[tuple[str, str]]
) -> None:
    review = Review()
    record = {"images": ["jpg"], "sizes": [(100, 50)]}
    review.add(record | {"annotations": [{"style": "x"} | annotation]})
    assert list(review.unlearnt) == said
    assert all(
        f"1 annotations whose '{one}' is not learnt" in review.sentences()[0] for one, _ in said
    )


def test_two_conversations_are_one_too_many() -> None:
    with pytest.raises(BadSample, match="both 'messages' and 'conversations'"):
        learnt({"messages": ROLES, "conversations": SHARE})


@pytest.mark.parametrize(
    ("points", "scale", "sentence"),
    [
        (
            [[150, -20]],
            100,
            r"\[150.0, -20.0\] lies outside of the picture, whose far edges are at 100",
        ),
        ([[500, 20]], None, r"\[500.0, 20.0\] lies outside of the picture, 100 x 50 pixels"),
        ([[10, 20], [10, 51]], None, r"\[10.0, 51.0\]"),
        ([[-1, 5], [7, 7], [200, 5]], None, r"\[-1.0, 5.0\] .*\(2 of 3 points do\)"),
        ([[1.5, 0.5]], 1, "outside"),
        ([[1e308, 1]], 1e-300, "outside"),
    ],
)
def test_points_outside(points: list[list[float]], scale: float | None, sentence: str) -> None:
    with pytest.raises(BadSample, match=sentence):
        learnt(POINT | {"points": points, "point_scale": scale})
    inline = INLINE | {"inline_points": [{"points": points, "alt": "x"}], "point_scale": scale}
    with pytest.raises(BadSample, match=sentence):
        learnt(inline)


def test_points_on_the_edges_belong_to_the_picture() -> None:
    text = learnt(POINT | {"points": [[100, 50], [0, 0], [-0.01, 50.01]], "point_scale": None})[1]
    assert text.startswith('<points x1="0.0" y1="0.0" x2="0.0" y2="100.0" x3="100.0" y3="100.0"')
    with pytest.raises(BadSample, match="need the picture's size"):
        learnt(POINT | {"point_scale": None}, None)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.floats()
    | st.text(max_size=6)
    | st.just("<image>x"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text", "points", "alt"]),
            inner,
        )
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from(sorted(KEYS) + ["boxes"]), JSON, max_size=6),
    st.sampled_from([ASK, CHOICE, POINT]),
)
def test_no_annotation_ends_in_anything_but_a_sentence(
    annotation: dict[str, Any], base: dict[str, Any]
) -> None:
    """Random values under every key: a list of texts, user first, or a BadSample; never another exception."""
    for given_annotation in (annotation, base | annotation):
        try:
            texts = learnt(given_annotation)
        except BadSample as error:
            assert str(error).endswith(".")
        else:
            assert len(texts) % 2 == 0 and all(isinstance(text, str) for text in texts)
            assert all(text and text != "nan" for text in texts[1::2])
