"""AI2D: questions about school-book diagrams, some of them about letters that have to be written on the picture first.

Layout: the archive ai2d-all.zip as allenai/molmo's olmo/hf_datasets/ai2d.py reads it (questions/, annotations/ and
images/). Where a question's options are letters, the text boxes of the diagram are covered by letters; such
questions come twice in training, with letters on filled boxes and with letters next to tinted ones.
"""

import csv
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from molmo_ds.data.sources.source import Item, Picture, Row, Source, annotation, read_json

_FILL = (25, 249, 255)
# pictures of the reference's validation split
_HELD_OUT = 384
_SEED = 5961


def ai2d(row: Row, split: str) -> list[Item]:
    """Options with letters A, B, ... in front, unless the options are themselves letters on the picture."""
    right = row["answerTexts"][row["correctAnswer"]]
    # {} is an empty option
    options = list(dict.fromkeys(option for option in row["answerTexts"] if option != "{}"))
    boxes = {
        text["replacementText"]: text["rectangle"]
        for text in row["annotation"].get("text", {}).values()
    }
    lettered = [option.upper() in boxes for option in options]
    unlabelled = row["abcLabel"] and sum(lettered) >= len(options) - 1
    if unlabelled:
        options_shown = [o.upper() if letter else o for o, letter in zip(options, lettered)]
    asked = annotation(
        "ai2_diagram_no_letter" if unlabelled else "ai2_diagram",
        question=row["question"],
        options=options_shown if unlabelled else options,
        answer_index=options.index(right),
        unlabelled=True if unlabelled else None,
    )
    known = {
        "example_id": row["questionId"],
        "image_id": row["image_id"],
        "abc_label": row["abcLabel"],
    }
    shown = Picture(path=f"images/{row['imageName']}")
    if not row["abcLabel"]:
        return [Item((shown,), [asked], {**known, "has_transparent_box": False})]
    letters = tuple(
        (*start, *end, letter) for letter, (start, end) in boxes.items() if start[1] != end[1]
    )
    items = []
    for clear in (False, True):
        draw = functools.partial(write_letters, letters=letters, see_through=clear)
        drawn = shown._replace(redraw=draw if letters else None)
        items.append(Item((drawn,), [asked], {**known, "has_transparent_box": clear}))
    return items


def read_ai2d(folder: Path, split: str) -> Iterator[Row]:
    """Questions of a split, each with its picture's annotation; the split is by picture."""
    with open(folder / "ai2d_test_ids.csv", newline="") as file:
        test = {int(line[0]) for line in csv.reader(file) if line}
    numbered = sorted(
        (int(path.name.split(".")[0]), path.name) for path in (folder / "questions").glob("*.json")
    )
    if not numbered:
        raise FileNotFoundError(folder / "questions")
    pictures = [(number, name, read_json(folder, f"questions/{name}")) for number, name in numbered]
    # the draw is among pictures that have a question
    train = [n for n, _, content in pictures if content["questions"] and n not in test]
    np.random.RandomState(_SEED).shuffle(train)
    wanted = (
        test
        if split == "test"
        else set(train[:_HELD_OUT] if split == "validation" else train[_HELD_OUT:])
    )
    for number, name, content in pictures:
        if number in wanted:
            marks = any(q["abcLabel"] for q in content["questions"].values())
            annotations = read_json(folder, f"annotations/{name}") if marks else {}
            for question, row in content["questions"].items():
                known = {
                    "imageName": content["imageName"],
                    "image_id": number,
                    "annotation": annotations,
                }
                yield {**row, **known, "question": question}


def write_letters(
    image: Image.Image,
    letters: tuple[tuple[float, float, float, float, str], ...],
    see_through: bool,
) -> Image.Image:
    """A copy whose boxes (left, top, right, bottom) are covered by their letters, or tinted next to their letters."""
    image = image.convert("RGB")
    draw = ImageDraw.Draw(image, "RGBA")
    for left, top, right, bottom, letter in letters:
        draw.rectangle([left, top, right, bottom], fill=(*_FILL, 127) if see_through else _FILL)
        if see_through:
            font = ImageFont.load_default(min(max(16, min(image.size) // 50), 32))
            place = (max(left - 12, 0), max(top - 10, 0))
            draw.rectangle(draw.textbbox(place, letter, font=font), fill="white")
            draw.text(place, letter, fill="black", font=font)
        else:
            font = ImageFont.load_default(min(22, max(6, int(bottom - top))))
            draw.text(
                ((left + right) / 2, (top + bottom) / 2),
                letter,
                fill="black",
                font=font,
                anchor="mm",
            )
    return image


SOURCES = [
    Source(
        "ai2_diagram_v2_mix_transparent",
        "CC BY-SA 4.0*",
        "allenai/molmo, olmo/hf_datasets/ai2d.py",
        ai2d,
        aliases=("ai2d",),
        read=read_ai2d,
        by_hand="unpack http://ai2-website.s3.amazonaws.com/data/ai2d-all.zip; DIR is its ai2d folder, with"
        " https://s3-us-east-2.amazonaws.com/prior-datasets/ai2d_test_ids.csv next to questions/",
    ),
]
