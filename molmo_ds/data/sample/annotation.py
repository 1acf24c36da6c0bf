"""One annotation of a record, checked once for all readers: types, ranges, finite numbers, forms of a conversation.

What is null is absent. So is NaN where a text, a list or a truth value is expected: tables hold it in empty cells.
"""

import math
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.conversation import read_messages, shown, without_marks

LIGHTEST = 1e-6  # weights are float32 in a batch, where less would vanish next to 1
HEAVIEST = 1e6  # and more would drown every other token
# keys whose NaN is a fault, not an empty cell
NUMBERS = ("weight", "points", "point_scale", "answer_index")
SIMPLE = {str, int, float, bool, type(None)}  # nearly all values are
INLINE_POINT = "<|POINT|>"  # stands in an answer where `inline_points` go
EXPECTED = {
    "style": "a text",
    "question": "a text",
    "text": "a text",
    "answer": "a text; several people's answers go into 'answers'",
    "answers": "a list of texts",
    "options": 'a list of texts, such as ["cat", "dog"]',
    "answer_index": "a whole number, 0 for the first option",
    "unlabelled": "true or false",
    "label": "a text that is not empty",
    "points": "a list of pairs [x, y] of finite numbers",
    "point_scale": "a finite number above 0, or null for pixels",
    "inline_points": "a list of {points, alt, text}: pairs of finite numbers and texts",
    "point_groups": "a list of {image or time, points}: a picture's number from 1, or seconds",
    "tracks": "a list of {time, points}: seconds, and a pair [x, y] by the name of each object",
    "track_fps": "a finite number above 0",
    "no_pointing": "true or false",
    "weight": f"a number from {LIGHTEST:f} to {HEAVIEST:,.0f}",
}


def _encodable(text: str) -> str:
    # a lone surrogate, which JSON can spell, is no text; UnicodeEncodeError is a ValueError
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Name = Annotated[Text, Field(pattern=r"\S")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Point = Annotated[list[Number], Field(min_length=2, max_length=2)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class InlinePoints(_Checked):
    """The points of one `<|POINT|>` of an answer."""

    points: list[Point]
    alt: Name
    text: Text | None = None


class PointGroup(_Checked):
    """Points in one of several pictures, or at one time of a video."""

    points: list[Point]
    image: Annotated[int, Field(ge=1)] | None = None
    time: Annotated[Number, Field(ge=0)] | None = None


class TrackPoints(_Checked):
    """The places of objects, by any names, at one time of a video; those of `hidden` cannot be seen."""

    time: Annotated[Number, Field(ge=0)]
    points: dict[str, Point]
    hidden: list[str] = []


class Annotation(_Checked):
    """A text to be learnt of a sample, or asked; the keys are explained in docs/reference/data-format.md."""

    style: Text | None = None
    question: Text | None = None
    text: Text | None = None
    answer: Text | None = None
    answers: list[Text] | None = None
    options: list[Text] | None = None
    answer_index: Annotated[int, Field(ge=0)] | None = None
    unlabelled: bool | None = None
    label: Name | None = None
    points: list[Point] | None = None
    point_scale: Annotated[Number, Field(gt=0)] | None = None
    inline_points: list[InlinePoints] | None = None
    point_groups: list[PointGroup] | None = None
    tracks: list[TrackPoints] | None = None
    track_fps: Annotated[Number, Field(gt=0)] | None = None
    messages: list[Text] | None = None
    no_pointing: bool | None = None
    weight: Annotated[Number, Field(ge=LIGHTEST, le=HEAVIEST)] | None = None
    # that the user's first text begins with, where it says so; not a key of a record
    pictures: int | None = None


# of a record's annotation
KEYS = frozenset(Annotation.model_fields) - {"pictures"} | {"conversations"}
ONE_OF = "one_of"  # the key of an annotation that holds several, of which each epoch draws one


def alternatives(value: Any) -> list[Any]:
    """The annotations to draw from: those of `one_of`, or the one itself; BadSample if there is none."""
    if not isinstance(value, dict) or ONE_OF not in value:
        return [value]
    several = value[ONE_OF]
    if not isinstance(several, list) or not several:
        raise BadSample(
            f"'{ONE_OF}' is {shown(several)}, but must be a list of annotations, one at least."
        )
    if len(value) > 1:
        other = next(key for key in value if key != ONE_OF)
        raise BadSample(
            f"An annotation with '{ONE_OF}' has nothing else, but there is '{other}' too."
        )
    if any(isinstance(one, dict) and ONE_OF in one for one in several):
        raise BadSample(f"'{ONE_OF}' holds another '{ONE_OF}'; give one list.")
    return several


def styles_of(annotations: list[Any]) -> set[Any]:
    """The styles of a record's annotations and of their alternatives, which are not checked here."""
    known = [one for one in annotations if isinstance(one, dict)]
    several = [one[ONE_OF] for one in known if isinstance(one.get(ONE_OF), list)]
    known += [one for part in several for one in part if isinstance(one, dict)]
    return {one["style"] for one in known if isinstance(one.get("style"), str)}


def read_annotation(value: Any) -> Annotation:
    """A checked annotation of a record's JSON; BadSample says in one sentence which keys hold what they must not."""
    if isinstance(value, Annotation):
        return value
    known = {key: item for key, item in present(value).items() if key in KEYS}
    if isinstance(known.get("answers"), str):
        known["answers"] = [known["answers"]]
    known |= _conversation(known)
    try:
        found = Annotation(**known)
    except ValidationError as error:
        raise BadSample(_sentence(error, known)) from None
    if (
        found.options
        and found.answer_index is not None
        and found.answer_index >= len(found.options)
    ):
        raise BadSample(
            f"'answer_index' {found.answer_index} points at none of {len(found.options)} options."
        )
    return found


def present(value: Any) -> dict[str, Any]:
    """An annotation's keys that are not null, tuples and arrays as lists; BadSample where it is no object."""
    if not isinstance(value, dict):
        raise BadSample(
            f"An annotation is {shown(value)}, but must be an object with keys such as style and answer."
        )
    return {
        key: item
        for key, item in ((key, _plain(item)) for key, item in value.items())
        if not _absent(key, item)
    }


def at(number: int, count: int) -> str:
    """The name of annotation `number`, from 0, of `count` for a sentence about it; empty for the only one."""
    return f"annotation {number + 1} of {count}: " if count > 1 else ""


def _absent(key: str, value: Any) -> bool:
    return value is None or (key not in NUMBERS and isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> Any:
    if type(value) in SIMPLE:
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return value


def _conversation(known: dict[str, Any]) -> dict[str, Any]:
    """`messages` as texts and the pictures that they, or the question, begin with."""
    if "conversations" in known and "messages" in known:
        raise BadSample("There are both 'messages' and 'conversations'; leave one out.")
    value = known.pop("conversations", known.get("messages"))
    if value is not None:
        messages, pictures = read_messages(value)
        return {"messages": messages, "pictures": pictures}
    if isinstance(known.get("question"), str):
        (question,), pictures = without_marks([known["question"]])
        return {"question": question, "pictures": pictures}
    return {}


def _sentence(error: ValidationError, known: dict[str, Any]) -> str:
    out = []
    for key in dict.fromkeys(str(one["loc"][0]) for one in error.errors()):
        surrogate = any(
            one["type"] == "value_error" and one["loc"][0] == key for one in error.errors()
        )
        expected = "Unicode without lone surrogates" if surrogate else EXPECTED[key]
        out.append(f"'{key}' is {shown(known[key])}, but must be {expected}")
    return "; ".join(out) + "."
