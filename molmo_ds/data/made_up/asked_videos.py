"""Rows of the academic sets that ask about videos, of a made-up film, as the readers of sources/ make them of files."""

from collections.abc import Callable, Sequence

from molmo_ds.data.made_up.film import SECONDS
from molmo_ds.data.made_up.videos import CLIP, Filmed
from molmo_ds.data.sources.source import Row
from molmo_ds.data.sources.videos.clipped_actions import QUESTIONS, UNSURE
from molmo_ds.data.sources.videos.video_answers import CHOICE_OF_SPOKEN, choice

SPOKEN = 0.4  # seconds at which the first line of a show ends


def gif_questions(shown: Filmed) -> list[Row]:
    """Two questions with options and two without."""
    chosen, worded = shown.asked()
    things = str(len(shown.film.scene.things))
    counted = {"part": "count", "question": "How many things are there?", "answer": things}
    seen = {"part": "frameqa", "question": worded[0], "answer": worded[1]}
    parts = [
        {"part": part, "question": chosen[0], "answer": "2", **_columns(chosen, 5, 2, first=1)}
        for part in ("action", "transition")
    ]
    rows = [parts[0], counted, parts[1], seen]
    return [{"gif_name": shown.name, **row} for row in rows]


def _columns(asked: tuple, count: int, place: int, first: int = 0, name: str = "a") -> Row:
    """Options in columns of their own, the right one at `place`."""
    return {f"{name}{first + i}": text for i, text in enumerate(_options(asked, count, place))}


def _options(asked: tuple[str, str, Sequence[str]], count: int, place: int) -> list[str]:
    _, answer, wrong = asked
    options = [*wrong, "in a circle"][: count - 1]
    options.insert(place, answer)
    return options


def news_questions(shown: Filmed) -> list[Row]:
    return [
        {"uni_clipped_id": shown.name, "question": question, "answer": answer}
        for question, answer, _ in shown.asked()
    ]


def social_questions(shown: Filmed) -> list[Row]:
    asked = shown.asked()[0]
    row = {"vid_name": shown.name, "q": asked[0], "answer_idx": 1}
    return [{**row, **_columns(asked, 4, 1)}]


def traffic_questions(shown: Filmed) -> list[Row]:
    """Three options and an empty cell."""
    asked = shown.asked()[0]
    row = {"vid_filename": shown.file, "vid_id": shown.number, "q_body": asked[0], "answer": 3}
    return [{**row, **_columns(asked, 4, 3, name="option"), "option0": ""}]


def sports_questions(shown: Filmed) -> list[Row]:
    question, answer, _ = shown.asked()[0]
    row = {"video": shown.name, "file": shown.file}
    return [{**row, "question": question, "answer": answer}]


def reasons(shown: Filmed) -> list[Row]:
    """A question with a word for an answer, and one with options."""
    chosen, worded = shown.asked()
    options = [
        {"choice_id": i, "choice": text, "answer": "correct" if i == 1 else "wrong"}
        for i, text in enumerate(_options(chosen, 3, 1))
    ]
    video = f"video_00000-01000/{shown.file}"
    return [
        {"video": video, "question": worded[0], "answer": worded[1]},
        {"video": video, "question": chosen[0], "choices": options},
    ]


def situations(shown: Filmed) -> list[Row]:
    """About the first part of a film, without options and with them."""
    asked = shown.asked()[0]
    options = [{"choice": text} for text in _options(asked, 4, 2)]
    row = {"video_id": shown.name, "clip": [0.0, CLIP], "shown": shown.name, "choices": options}
    row |= {"question": asked[0], "answer": asked[1]}
    return [{**row, "chosen": chosen} for chosen in (False, True)]


def funny_questions(shown: Filmed) -> list[Row]:
    """A free question, and one whose options stand in its last line."""
    chosen, worded = shown.asked()
    row = {"video": f"train/train_humor/{shown.file}", "visual_input": shown.file}
    options = [f"Options {i}: {text}" for i, text in enumerate(_options(chosen, 3, 0), 1)]
    listed = f"The Question is: {chosen[0]}\n The Options are: {options}"
    return [
        {**row, "instruction": worded[0], "output": worded[1]},
        {**row, "instruction": listed, "gt": "1"},
    ]


def conversations(shown: Filmed) -> list[Row]:
    """Short answers."""
    return [_conversation(shown, [(q, a) for q, a, _ in shown.asked()])]


def lettered_conversations(shown: Filmed) -> list[Row]:
    """Options that stand in the question, and the letter of the right one."""
    asked = shown.asked()[0]
    options = [f"{x}. {text}." for x, text in zip("ABCD", _options(asked, 4, 1))]
    return [_conversation(shown, [("\n".join([asked[0], *options]), options[1])])]


def _conversation(shown: Filmed, pairs: list[tuple[str, str]]) -> Row:
    turns = [
        {"from": who, "value": text} for pair in pairs for who, text in zip(("human", "gpt"), pair)
    ]
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    row = {"id": shown.name, "data_source": "made_up", "video": shown.file, "shown": shown.name}
    return {**row, "part": "made_up", "conversations": turns}


def perception_questions(shown: Filmed) -> list[Row]:
    asked = shown.asked()[0]
    options = _options(asked, 3, 1)
    row = {"video_name": shown.name, "question": asked[0], "options": options}
    return [{**row, "answer_id": 1}]


def next_questions(shown: Filmed) -> list[Row]:
    asked = shown.asked()[0]
    row = {"video": shown.name, "place": f"NExTVideo-all-videos/made_up/{shown.file}"}
    return [{**row, "question": asked[0], "answer": "4", **_columns(asked, 5, 4)}]


def show_questions(shown: Filmed) -> list[Row]:
    """A part of a show, with what is said in it: the first line begins before it."""
    asked = shown.asked()[1]
    scene = shown.film.scene
    said = [[-SPOKEN, SPOKEN, f"look at the {shown.label}"], [SPOKEN, 2.0, f"{scene.word}, then"]]
    learnt = choice(asked[0], _options(asked, 5, 3), 3, CHOICE_OF_SPOKEN)
    row = {"video": shown.data, "asked": [learnt], "subtitles": said, "clip_name": shown.name}
    return [{**row, "show_name": "made up", "ts": f"0-{SECONDS}"}]


def film_questions(shown: Filmed) -> list[Row]:
    """A scene of a film, with what is said in it as one text."""
    examples = [
        {
            "question": asked[0],
            "choices": _options(asked, 5, 2),
            "answer_key_position": 2,
        }
        for asked in shown.asked()
    ]
    said = f"<subtitle> the sign says {shown.film.scene.word}"
    row = {"video_id": shown.name, "movie_name": "made up", "subtitles": said}
    return [{**row, "examples": examples}]


def opposites(shown: Filmed) -> list[Row]:
    """Every other film is a part of a longer one."""
    label = shown.film.scene.things[0].label
    options = [f"A {label} moves to the {way}" for way in ("left", "right")]
    clip = [0.0, CLIP] if shown.number % 2 else None
    row = {"video": shown.file, "clip": clip, "shown": shown.name, "answer": 1}
    return [{**row, "question": QUESTIONS[shown.number % 3], "options": [*options, UNSURE]}]


def how_to_questions(shown: Filmed) -> list[Row]:
    question, answer, wrong = shown.asked()[0]
    row = {"video_id": shown.name, "clip": shown.file, "question": question, "answer": answer}
    return [{**row, **{f"wrong{i}": text for i, text in enumerate(wrong)}}]


TRAIN: dict[str, Callable[[Filmed], list[Row]]] = {
    "tgif": gif_questions,
    "tvqa_with_sub": show_questions,
    "paxion": opposites,
    "llava_video_mc_academic": lettered_conversations,
    "llava_video_oe_academic": conversations,
    "perception_test": perception_questions,
    "nextqa_mc": next_questions,
    "news_video_qa_filtered": news_questions,
    "how2qa": how_to_questions,
    "sutd_trafficqa": traffic_questions,
    "social_iq2": social_questions,
    "sportsqa_oe": sports_questions,
    "cinepile_with_sub": film_questions,
    "clevrer": reasons,
    "funqa": funny_questions,
    "star": situations,
}
