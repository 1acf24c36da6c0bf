"""Rows of academic sets about what is done in videos, as their readers give them, of a made-up film."""

from collections.abc import Callable
from typing import Any

from molmo_ds.data.made_up.film import SECONDS, STEP
from molmo_ds.data.made_up.rows import Shown
from molmo_ds.data.made_up.videos import Filmed
from molmo_ds.data.sources.fixed_answers import read_answers
from molmo_ds.data.sources.source import Row

WAYS = ("to the right", "to the left")  # of things with even and with odd numbers
PART = (STEP, SECONDS - STEP)  # seconds


def _action(shown: Filmed) -> str:
    return f"moving a {shown.film.scene.things[0].label} {WAYS[0]}"


def named(shown: Filmed, **known: Any) -> list[Row]:
    """A clip with the name of its action."""
    return [{"place": f"clips/{shown.file}", "label": _action(shown), **known}]


def narrated(shown: Filmed) -> list[Row]:
    row = {"place": f"clips/{shown.file}", "clip": shown.file}
    return [{**row, "narration": _action(shown)}, {**row, "narration": "show a sign"}]


def parts(shown: Filmed, **known: Any) -> list[Row]:
    """A part of a film with the name of its action."""
    begin, end = PART
    row = {"video": shown.name, "place": f"videos/{shown.file}", "begin": begin, "end": end}
    return [{**row, "part": f"{shown.name} {begin} {end}", "label": _action(shown), **known}]


def steps(shown: Filmed) -> list[Row]:
    """A sentence of a part, and of the whole film."""
    rows = parts(shown, label=f"Start {_action(shown)}.", whole=False)
    return [*rows, {**rows[0], "part": shown.name, "whole": True}]


def activities(shown: Filmed) -> list[Row]:
    """An activity of a part, and questions about the whole film."""
    whole = {"video": shown.name, "place": f"videos/{shown.file}", "part": shown.name}
    asked = [{**whole, "question": q, "answer": a} for q, a, _ in shown.asked()]
    return [*parts(shown, again=False, publisher_split="training"), *asked]


def five_options(shown: Filmed) -> list[Row]:
    rows = []
    for question, answer, wrong in shown.asked():
        options = [*wrong[:2], answer, *wrong[2:], "nothing"]
        row = {"video_id": shown.name, "question": question, "answer": "2", "type": "CW"}
        rows.append(row | {f"a{number}": option for number, option in enumerate(options)})
    return rows


def signs(shown: Filmed) -> list[Row]:
    """What is written, of which two answers are right."""
    word = shown.film.scene.word
    row = {"video": shown.file, "questionId": shown.number, "answer": [word, word.upper()]}
    return [{**row, "question": "Which word is on the sign?"}]


def counts(shown: Filmed) -> list[Row]:
    number = str(len(shown.film.scene.things))
    row = {"video_path": f"train/moving/{shown.file}", "class": "moving", "count": number}
    return [{**row, "questions": ["How many things move?", "Count what moves."]}]


def choices(shown: Filmed) -> list[Row]:
    asked = [
        {"Question": question, "Answer": answer, "NegativeAnswers": wrong}
        for question, answer, wrong in shown.asked()
    ]
    return [{"video_path": shown.file, "mc_qa_list": asked}]


def moments(shown: Filmed) -> list[Row]:
    """What a clip shows, and when something happens."""
    begin, end = PART
    said = [
        {"style": "ego4d_mq_label_clip", "question": "Label the clip.", "answer": _action(shown)},
        {
            "style": "ego4d_nlq_temporal_grounding",
            "question": "When is the sign in the middle of the video?",
            "answer": f"Start: {begin:.2f}, end: {end:.2f}",
        },
    ]
    return [{"clip": shown.file, "corrupt": False, "message_list": said}]


def highlights(shown: Filmed) -> list[Row]:
    label = shown.film.scene.things[1].label  # which appears after a while
    row = {
        "qid": shown.number,
        "vid": shown.name,
        "query": f"The second thing, a {label}, is seen.",
    }
    return [{**row, "relevant_windows": [[STEP, SECONDS]]}]


def told(shown: Filmed) -> list[Row]:
    asked = [
        {"raw_question": question, "raw_answer": answer} for question, answer, _ in shown.asked()
    ]
    return [{"video_name": shown.name, "place": f"oops/{shown.file}", "qa_pairs": asked}]


def actors(shown: Filmed) -> list[Row]:
    labels = [thing.label for thing in shown.film.scene.things[:2]]
    captions = [f"The {label} moves {way}." for label, way in zip(labels, WAYS)]
    row = {"id": shown.name, "video": f"oops/{shown.file}", "captions": captions}
    return [{**row, "actor_names": [label.title() for label in labels]}]


def motion(shown: Filmed) -> list[Row]:
    return [{"video_path": shown.file, "motion_caption": shown.film.caption()}]


def itself(shown: Shown) -> list[Row]:
    """A question about the model alone, with a picture and with several."""
    rows = [row for row in read_answers(None, "train") if row["shown"] == "nothing"]
    row = rows[shown.number % len(rows)]
    several = [one.file for one in shown.all]
    return [
        {**row, "shown": kind, "files": files}
        for kind, files in (("nothing", []), ("picture", several[:1]), ("pictures", several))
    ]


TRAIN: dict[str, Callable[[Filmed], list[Row]]] = {
    "intent_qa": five_options,
    "video_localized_narratives": told,
    "road_text_vqa": signs,
    "countix_oe": counts,
    "camerabench_qa": choices,
    "motionbench_train": motion,
    "moments_in_time_qa": named,
    "kinetics_qa": lambda shown: named(shown, damaged=False),
    "charades_sta_all_qa": parts,
    "coin_all_qa": lambda shown: parts(shown, damaged=False),
    "youcook2_all_qa": steps,
    "activitynet_all_qa": activities,
    "ego4d_all": moments,
    "epic_kitchens_qa": narrated,
    "video_localized_narratives_caption": actors,
    "qv_highlights": highlights,
}
