"""Rows as each data set publishes them, about a made-up scene: the columns that the adapters of sources/ read."""

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from molmo_ds.data.made_up.scene import Scene, absent, draw_clock, encode
from molmo_ds.data.sources.source import Row


@dataclass(frozen=True)
class Shown:
    """One picture, whose file is NUMBER.png below the data set's folder or at its address."""

    number: int
    scene: Scene
    data: bytes
    others: tuple["Shown", ...] = ()  # shown with it by sets of several pictures

    @property
    def all(self) -> tuple["Shown", ...]:
        """It and the others."""
        return (self, *self.others)

    @property
    def file(self) -> str:
        """Its name."""
        return f"{self.number}.png"

    @property
    def image(self) -> dict[str, Any]:
        """It, as a table holds it."""
        return {"bytes": self.data, "path": self.file}

    @property
    def address(self) -> dict[str, str]:
        """The columns of a picture that is published as an address."""
        url = f"https://made-up.invalid/{self.file}"
        return {"image_url": url, "image_sha256": hashlib.sha256(self.data).hexdigest()}

    @property
    def label(self) -> str:
        """A kind of thing that is there."""
        return next(iter(self.scene.places()))

    def asked(self, count: int = 2) -> list[tuple[str, str]]:
        """Questions with short answers; how many is the first."""
        return self.scene.questions()[:count]


def captions(shown: Shown) -> list[Row]:
    caption = shown.scene.caption()
    said = [f"um {caption.lower()}", f"so, what I see: {caption}"]
    return [{**shown.address, "caption": caption, "transcripts": said}]


def conversations(shown: Shown) -> list[Row]:
    turns = [text for pair in shown.asked(3) for text in pair]
    return [{**shown.address, "question": "", "answer": "", "messages": turns}]


def people_ask(shown: Shown) -> list[Row]:
    return [{**shown.address, "question": q, "answer": f"{a}."} for q, a in shown.asked(3)]


def explanations(shown: Shown) -> list[Row]:
    rows = []
    for label in shown.scene.places():
        marks = {"alt_text": [label], "inline_text": [label], "points": [_structs(shown, label)]}
        answer = {"question": f"Where is the {label}?", "parsed_response": "Here: <|POINT|>"}
        rows.append({**shown.address, **answer, **marks})
    return rows


def _structs(shown: Shown, label: str) -> list[dict[str, float]]:
    return [{"x": x, "y": y} for x, y in shown.scene.percent(label)]


def places(shown: Shown, method: str = "pointing") -> list[Row]:
    labels = [*shown.scene.places()]
    rows = []
    for label in [*labels, absent(labels)]:
        points = _structs(shown, label)
        known = {"label": label, "points": points, "count": len(points)}
        rows.append({**shown.address, **known, "collection_method": method})
    return rows


def places_to_evaluate(shown: Shown) -> list[Row]:
    scene = shown.scene
    masks = []
    for x, y in scene.places()[shown.label]:
        near = [
            [abs(x - i) < 16 and abs(y - j) < 16 for i in range(scene.width)]
            for j in range(scene.height)
        ]
        masks.append(near)
    known = {"label": shown.label, "points": _structs(shown, shown.label), "masks": masks}
    return [{**shown.address, **known}]


def counts(shown: Shown) -> list[Row]:
    pixels = shown.scene.places()[shown.label]
    points = {"x": [x for x, _ in pixels], "y": [y for _, y in pixels]}
    return [{**shown.address, "label": shown.label, "points": points, "count": len(pixels)}]


def documents(shown: Shown) -> list[Row]:
    questions, answers = zip(*shown.asked(4))
    pairs = {"question": [*questions], "answer": [*answers]}
    return [{"image": shown.image, "image_id": f"made-up-{shown.number}", "questions": pairs}]


def clocks(shown: Shown) -> list[Row]:
    hour, minute = clock_time(shown.number)
    row = {
        "example_id": str(shown.number),
        "time_format": "12 hour clock (without AM/PM)",
        "shows_seconds": False,
        "hour_visible": hour,
        "minute_visible": minute,
        "second_visible": -1,
    }
    return [{**row, "text": f"The time shown is {hour}:{minute:02d}"}]


def clock_time(number: int) -> tuple[int, int]:
    """Hour and minute of the clock of that number."""
    return number % 12 + 1, number * 7 % 60


def photographs(shown: Shown, answer: str = "answer") -> list[Row]:
    return [
        {
            "image": shown.file,
            "image_id": shown.number,
            "question_id": 10 * shown.number + i,
            "question": q,
            "answers": [{answer: a}] * 10,
            "answer_type": "number" if a.isdigit() else "other",
        }
        for i, (q, a) in enumerate(shown.asked(3))
    ]


def knowledge(shown: Shown) -> list[Row]:
    answer = shown.scene.word
    choices = [answer, "river", "stone", "cloud"]
    return [
        {
            "image": shown.image,
            "question_id": f"made-up-{shown.number}",
            "question": "Which word is on the sign?",
            "choices": choices[::-1],
            "correct_choice_idx": 3,
            "direct_answers": [answer] * 10,
            "difficult_direct_answer": False,
        }
    ]


def words(shown: Shown) -> list[Row]:
    known = {"image_id": str(shown.number), "question_id": shown.number, "flickr_300k_url": ""}
    row = {"question": "What does the sign say?", "answers": [shown.scene.word] * 10}
    return [{**known, **row, "image": shown.image}]


def charts(shown: Shown) -> list[Row]:
    return [
        {"image": shown.image, "query": q, "label": [a], "human_or_machine": i % 2}
        for i, (q, a) in enumerate(shown.asked(2))
    ]


def pages(shown: Shown) -> list[Row]:
    return [
        {
            "image": shown.image,
            "image_local_name": shown.file,
            "file_path": shown.file,
            "questionId": 10 * shown.number + i,
            "question_id": 10 * shown.number + i,
            "question": q,
            "answers": [a],
        }
        for i, (q, a) in enumerate(shown.asked(3)[1:])
    ]


def diagrams(shown: Shown) -> list[Row]:
    known = {"image_id": shown.number, "imageName": shown.file}
    options = [shown.scene.word, "river", "stone", "cloud"]
    plain = {"abcLabel": False, "answerTexts": options, "correctAnswer": 0, "annotation": {}}
    plain |= {"question": "Which word is on the sign?", "questionId": f"{shown.file}-0"}
    boxes = {
        f"T{i}": {"replacementText": letter, "rectangle": [[40 * i, 4], [40 * i + 24, 24]]}
        for i, letter in enumerate("ABCD")
    }
    lettered = {"abcLabel": True, "answerTexts": [*"ABCD"], "annotation": {"text": boxes}}
    lettered |= {"question": "Which letter is on the left?", "questionId": f"{shown.file}-1"}
    return [{**plain, **known}, {**lettered, **known, "correctAnswer": 0}]


def screens(shown: Shown) -> list[Row]:
    x, y = shown.scene.places()[shown.label][0]
    actions = [
        {"action_type": "click", "x": round(x), "y": round(y)},
        {"action_type": "open_app", "app_name": shown.scene.word},
    ]
    return [
        {
            "episode_id": [shown.number],
            "goal": f"Open {shown.scene.word}",
            "screenshots": [shown.data] * 3,
            "screenshot_widths": [shown.scene.width] * 3,
            "screenshot_heights": [shown.scene.height] * 3,
            "actions": [json.dumps(action) for action in actions],
            "step_instructions": [f"Tap the {shown.label}", f"Open {shown.scene.word}"],
            "accessibility_trees": [b"", b"", b""],
        }
    ]


def lessons(shown: Shown) -> list[Row]:
    choices = ["river", shown.scene.word]
    row = {"hint": "Look at the sign.", "question": "What does it say?", "choices": choices}
    return [{**row, "image": shown.image, "answer": 1, "subject": "natural science"}]


def tables(shown: Shown) -> list[Row]:
    question = f"How much is 2 times {shown.scene.number}?"
    row = {"question": question, "answer": str(2 * shown.scene.number)}
    return [{**row, "example_id": shown.number, "image": shown.file}]


def tallies(shown: Shown) -> list[Row]:
    return [
        {
            "image": shown.file,
            "image_id": shown.number,
            "question_id": 10 * shown.number + i,
            "question": f"How many {label}s are there?",
            "answer": len(points),
            "issimple": True,
        }
        for i, (label, points) in enumerate(shown.scene.places().items())
    ]


def counts_to_evaluate(shown: Shown) -> list[Row]:
    number = len(shown.scene.places()[shown.label])
    question = f"How many {shown.label}s are there?"
    return [{"image": shown.image, "question": question, "number": number}]


def bars(shown: Shown) -> list[Row]:
    return [
        {"image": shown.file, "question": q, "answer": a, "question_id": 10 * shown.number + i}
        for i, (q, a) in enumerate(shown.asked(2))
    ]


def figures(shown: Shown) -> list[Row]:
    asked = [(f"Is the ground {colour}?", colour) for colour in ("grey", "white")]
    return [
        {
            "image": shown.file,
            "image_index": shown.number,
            "question_string": question,
            "answer": int(colour == shown.scene.ground),
        }
        for question, colour in asked
    ]


def talks(shown: Shown) -> list[Row]:
    number = shown.scene.number
    turns = [("user", f"How much is {number} plus 1?"), ("assistant", f"It is {number + 1}.")]
    row = {
        "id": f"made-up-{shown.number}",
        "messages": [{"role": role, "content": text} for role, text in turns],
        "source": "made-up",
        "category": "other",
        "first_message_qwen3_tokens": 12,
        "empty_messages": False,
        "has_special_token": False,
    }
    return [row]


# sets whose pictures a program drew
DRAWN = ("pixmo_docs", "chart", "dv", "figure", "plot", "tab", "android", "cosyn")
_HIGH = functools.partial(places, method="counting")
_RAW = functools.partial(photographs, answer="raw_answer")
TRAIN: dict[str, Callable[[Shown], list[Row]]] = {
    "pixmo_cap": captions,
    "pixmo_cap_with_transcripts": captions,
    "pixmo_transcript": captions,
    "pixmo_cap_qa": conversations,
    "pixmo_cap_qa_as_user_qa": conversations,
    "pixmo_ask_model_anything": people_ask,
    "pixmo_pointing_explanations": explanations,
    "pixmo_points": places,
    "pixmo_points_counting": places,
    "pixmo_points_train": places,
    "pixmo_points_high_freq": _HIGH,
    "pixmo_points_high_freq_counting": _HIGH,
    "pixmo_points_high_freq_train": _HIGH,
    "pixmo_count": counts,
    "pixmo_count_counting": counts,
    "pixmo_docs_charts": documents,
    "pixmo_docs_tables": documents,
    "pixmo_docs_other": documents,
    "pixmo_docs_diagrams": documents,
    "pixmo_clocks": clocks,
    "coco_2014_vqa_multi": photographs,
    "okvqa": _RAW,
    "text_vqa": words,
    "a_okvqa_mc": knowledge,
    "a_okvqa_da": knowledge,
    "chart_qa": charts,
    "chart_qa_weighted": charts,
    "doc_qa": pages,
    "info_qa": pages,
    "st_qa": pages,
    "ai2_diagram_v2_mix_transparent": diagrams,
    "science_qa_img": lessons,
    "tabwmp_da": tables,
    "tally_qa": tallies,
    "android_control": screens,
    "dv_qa": bars,
    "figure_qa": figures,
    "plot_qa": figures,
    "tulu4": talks,
}
EVALUATED: dict[tuple[str, str], Callable[[Shown], list[Row]]] = {  # (data set, split)
    ("pixmo_cap", "validation"): captions,
    ("pixmo_cap_with_transcripts", "validation"): captions,
    ("pixmo_transcript", "validation"): captions,
    ("pixmo_points_eval", "test"): places_to_evaluate,
    ("pixmo_count_counting", "validation"): counts,
    ("pixmo_clocks", "validation"): clocks,
    ("count_bench_qa", "test"): counts_to_evaluate,
    ("coco_2014_vqa_multi", "validation"): photographs,
    ("chart_qa", "validation"): charts,
    ("doc_qa", "validation"): pages,
    ("info_qa", "validation"): pages,
    ("ai2_diagram_v2_mix_transparent", "validation"): diagrams,
    ("android_control", "validation"): screens,
}


def picture_of(source: str, number: int, scene: Scene) -> bytes:
    """The file of a picture: a photograph's is JPEG, what a program drew is PNG."""
    if source == "pixmo_clocks":
        return encode(draw_clock(*clock_time(number)), "PNG")
    drawn = source.startswith(DRAWN)
    return encode(scene.draw(), "PNG" if drawn else "JPEG")
