"""How Molmo2 is asked: options in many forms, tracks by their rate, questions without a style."""

import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import RandomState

from molmo_ds.config import PromptConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.pointed import P_ANY_START, Scene
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.wording import options as worded
from molmo_ds.data.wording.videos import TRACK, TRACK_AT_TWO
from molmo_ds.weights import checkpoint, released_config
from molmo_ds.weights.source import open_source

GOLDENS = Path(__file__).parents[1] / "goldens/data"
MOLMO2 = PromptConfig(
    prompt_templates="uber_model_v2",
    message_format="chat",
    system_prompt="demo_or_style_v2",
    pointing_format="html-v2",
)
SPEAKER = PromptFormatter(MOLMO2)
CHOICE = {"style": "a_okvqa_mc", "question": "Which?", "options": ["a cat", "a dog"]}
CHOICE |= {"answer_index": 1}
SIZE = (100, 100)
TIMES = [0.0, 0.5, 1.0, 1.5, 2.0]


def said(annotation: dict[str, Any], seed: int = 0, inference: bool = False) -> list[str]:
    scene = Scene([SIZE], TIMES)
    return SPEAKER.messages(annotation, RandomState(seed), SIZE, inference, scene)


def moved(**more: Any) -> dict[str, Any]:
    """A ball that moves one per cent each half second, and another that is there only first, hidden."""
    tracks = [{"time": t, "points": {"b": [10 + i, 50]}} for i, t in enumerate(TIMES)]
    tracks[0]["points"]["c"] = [90, 90]
    tracks[0]["hidden"] = ["c"]
    return {"style": "video_point_track_per_frame", "label": "the Ball", "tracks": tracks, **more}


def test_an_evaluation_has_the_released_form() -> None:
    (text,) = said(CHOICE, inference=True)
    assert text == "Which?\nOnly return the correct answer option.\nA. a cat\nB. a dog"
    (text,) = said({**CHOICE, "unlabelled": True}, inference=True)
    assert text.endswith("option.\na cat\na dog")


def test_training_draws_forms_whose_answer_is_in_the_question() -> None:
    pairs = [said(CHOICE, seed) for seed in range(1000)]
    assert all("Which?" in text and "a cat" in text and "a dog" in text for text, _ in pairs)
    assert all(answer in text for text, answer in pairs)
    released = sum(worded.REQUEST in text for text, _ in pairs)
    names = sum("a dog" not in answer for _, answer in pairs)
    # binomial: three standard deviations are 0.028 and 0.040
    assert released / 1000 == pytest.approx(worded.P_RELEASED, abs=0.028)
    assert names / 1000 == pytest.approx(0.9 * worded.P_NAME_ONLY, abs=0.04)
    assert len({text for text, _ in pairs}) > 500


def test_an_option_without_text_has_a_name_and_long_lists_keep_every_option() -> None:
    blank = {**CHOICE, "options": ["a cat", " "]}
    assert all(said(blank, seed)[1].strip() for seed in range(200))
    many = [f"option {i}." for i in range(12)]  # more than there are numerals
    drawn = [worded.drawn("?", many, RandomState(seed)) for seed in range(300)]
    assert all(len(answers) == 12 and many[11] in text for text, answers in drawn)


def test_molmo_itself_asks_as_before() -> None:
    old = PromptFormatter(PromptConfig())
    text = old.messages(CHOICE, RandomState(0))
    assert text == [" User: a_okvqa_mc: Which?\nA: a cat\nB: a dog\n Assistant:", " B"]


def test_the_question_says_how_often_a_track_is_asked_for() -> None:
    asked = [said(moved(track_fps=1.0), seed) for seed in range(40)]
    assert all("1 " in question and "the Ball" in question for question, _ in asked)
    assert {answer for _, answer in asked} == {
        '<tracks coords="0.0 1 100 500;1.0 1 120 500;2.0 1 140 500">the Ball</tracks>'
    }
    silent = [said(moved(track_fps=2.0), seed)[0] for seed in range(400)]
    free = {sentence.format(label="the Ball") for sentence in TRACK_AT_TWO}
    assert np.mean([text in free for text in silent]) == pytest.approx(0.5, abs=0.075)
    assert len(TRACK) == 10 and all("{fps}" in sentence for sentence in TRACK)


def test_a_point_is_followed_from_where_the_question_says() -> None:
    style = "video_single_point_track_per_frame"
    asked = moved(style=style, track_fps=2.0)
    first = '<points coords="0.0 1 100 500">the Ball</points>'
    track = (
        '<tracks coords="0.5 1 110 500;1.0 1 120 500;1.5 1 130 500;2.0 1 140 500">the Ball</tracks>'
    )
    pairs = [said(asked, seed) for seed in range(400)]
    begun = [pair for pair in pairs if first in pair[0]]
    assert {answer for _, answer in begun} == {track}
    assert all("2 FPS" in question or "2 frames" in question for question, _ in pairs)
    # a draw of five places gives the first one too; three deviations are 0.055
    assert len(begun) / 400 == pytest.approx(1 - 0.8 * P_ANY_START, abs=0.055)
    later = next(pair for pair in pairs if "1.0 1 120" in pair[0])
    assert later[1] == '<tracks coords="1.5 1 130 500;2.0 1 140 500">the Ball</tracks>'
    assert all(first in said(asked, seed, inference=True)[0] for seed in range(40))
    with pytest.raises(BadSample, match="needs track_fps"):
        said(moved(style=style))


def test_what_is_nowhere_and_what_is_not_shown() -> None:
    nowhere = moved(track_fps=2.0) | {"tracks": []}
    assert said(nowhere)[1] == "There are none."
    # the reference draws no request without a rate there
    assert all("2" in said(nowhere, seed)[0] for seed in range(40))
    between = moved(track_fps=2.0) | {"tracks": [{"time": 0.2, "points": {"b": [1, 1]}}]}
    assert said(between)[1] == "No tracks available."


def test_the_ends_of_objects_that_are_given_apart_are_one_moment() -> None:
    tracks = [
        {"time": 0.0, "points": {"a": [10, 10]}},
        {"time": 0.0, "points": {"b": [5, 10]}},
        {"time": 1.0, "points": {"a": [11, 10], "b": [6, 10]}},
        {"time": 2.0, "points": {"a": [12, 10], "b": [7, 10]}},
    ]
    asked = moved(style="video_point_ground_start_end") | {"tracks": tracks}
    wanted = '<tracks coords="0.0 1 050 100 2 100 100;2.0 1 070 100 2 120 100">the Ball</tracks>'
    assert said(asked)[1] == wanted
    # the rate is for whole tracks: the ends are those of all frames that are shown
    asked = asked | {
        "track_fps": 0.5,
        "tracks": [{"time": 0.5, "points": {"a": [9, 10]}}, *tracks[2:]],
    }
    wanted = (
        '<tracks coords="0.5 1 090 100;1.0 2 060 100;2.0 1 120 100 2 070 100">the Ball</tracks>'
    )
    assert said(asked)[1] == wanted


def test_labels_of_videos_keep_their_case() -> None:
    groups = [{"time": 0.5, "points": [[1, 1]]}]
    for style, label in (("video_point", "A Cup"), ("pointing", "a cup")):
        asked = {"style": style, "label": "A Cup", "point_groups": groups}
        assert said(asked)[1].endswith(f">{label}</points>")


def test_short_answers_are_asked_for_in_training_only() -> None:
    asked = {"style": "video_short_answer", "question": "Who?", "answer": "Me."}
    assert all(said(asked, seed)[0] != "Who?" for seed in range(20))
    asked["style"] = "video_eval_short_answer"
    assert said(asked, inference=True) == ["video_short_answer: Who?"]


def test_a_question_without_a_style_is_asked_as_it_stands() -> None:
    assert SPEAKER.free_style == "user_qa"
    old = dataclasses.replace(MOLMO2, system_prompt="demo_or_style")
    assert PromptFormatter(old).free_style == "demo"


def test_a_released_folder_is_asked_as_its_family_was_trained(tmp_path: Path) -> None:
    prompts = open_source(GOLDENS / "G_video/A_molmo2/q3_8b/hf").config.data.prompts
    assert prompts == dataclasses.replace(MOLMO2, root_length=True)
    assert released_config.prompts(GOLDENS / "A_model/d_qwen2/hf", "molmo") == PromptConfig()
    # a folder of converted weights says only what the model is
    for family in ("molmo", "molmo2"):
        (tmp_path / "config.yaml").write_text(f"model: {{family: {family}}}\n")
        assert checkpoint.read_config(tmp_path).data.prompts == released_config.FAMILY[family]


def test_points_in_all_pictures_or_some() -> None:
    """Half the questions mean all; others name some, whose points the answer has, in the order of the question."""
    groups = [{"image": 2, "points": [[10, 20]]}, {"image": 3, "points": [[30, 40], [5, 6]]}]
    asked = {"style": "multi_image_point_then_count", "label": "Red cups", "point_scale": 100}
    asked["point_groups"] = [{"image": 1, "points": []}, *groups]
    scene = Scene([SIZE] * 4)
    texts = {"2": "100 200", "3": "1 050 060 2 300 400"}
    everything = 0
    named = Counter()
    for seed in range(600):
        question, answer = SPEAKER.messages(asked, RandomState(seed), SIZE, False, scene)
        assert "Red cups" in question
        numbers = re.findall(r"image_(\d)", question)
        everything += "all images" in question
        assert bool(numbers) != ("all images" in question)
        named[len(numbers)] += 1
        with_points = [one for one in numbers or ["2", "3"] if one in texts]
        if not with_points:
            assert answer == "There are none."
            continue
        total = sum({"2": 1, "3": 2}[one] for one in with_points)
        assert answer.endswith(f'">Red cups</points> shows a total of {total}.')
        places = re.search(r'coords="([^"]*)"', answer)[1].split(";")
        assert [place.split()[0] for place in places] == with_points
        if with_points == ["3"]:
            assert places == [f"3 {texts['3']}"]
    # binomial: three standard deviations of 600 at 1/2 are 37, of about 300 at 1/4 are 23
    assert abs(everything - 300) < 37
    assert all(abs(named[count] - (600 - everything) / 4) < 24 for count in (1, 2, 3, 4))
    pointed = {**asked, "style": "multi_image_pointing"}
    plain = 0
    for seed in range(200):
        question, answer = SPEAKER.messages(pointed, RandomState(seed), SIZE, False, scene)
        plain += "image" not in question.replace("image.", "")
        assert answer == "There are none." or answer.startswith('<points coords="')
    assert plain  # a sentence for one picture
    (question,) = SPEAKER.messages(pointed, RandomState(1), SIZE, True, scene)
    bare = PromptFormatter(dataclasses.replace(MOLMO2, prompt_templates="none"))
    assert bare.messages(pointed, RandomState(1), SIZE, True, scene) == ["Red cups"]
