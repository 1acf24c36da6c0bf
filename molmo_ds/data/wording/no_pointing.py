"""A request not to point, before questions how many there are whose answers hold no points.

Without it a model that also learns to count by pointing would learn both answers to one question. A sentence is drawn
at each visit; the list is as long as the reference's, the words are our own. Which questions get one is the rule of

- allenai/molmo 793fa38, olmo/data/pixmo_datasets.py: those of one line that begin with "how many", in any case;
- allenai/molmo2 f3cb108, olmo/preprocessing/detect_counting_question.py: those that ask for a count anywhere, but not
  of what is measured, and not those that begin with "approximately".
"""

import re
from collections.abc import Iterable

from numpy.random import RandomState

from molmo_ds.data.sample.annotation import Annotation

_HOW_MANY = re.compile("how many.*")
# whatever begins with one of these is measured, not counted
_MEASURED = (
    r"years|months|weeks|days|hours|minutes|acres|hectares|leagues|fathoms|metres|gallons|quarts"
    r"|pints|dollars|cents|euros|pounds|ounces|tons|weight|degrees|calories|hertz|horsepower"
    r"|atmospheres|psi|mph|kph|seed|cubic|more|fewer|less|likes|ways|different ways|fluid ounces"
    r"|nautical miles|yards|square yards|passing yards|(?:square |sq )?(?:inches|ft|miles)"
    r"|(?:square |sq )feet|[a-z]*(?:seconds|liters|grams|bytes|watts)"
    r"|(?:tera|giga|mega|kilo|deca|deci|centi|milli|micro|nano|pico)?meters"
)
_COUNTED = rf"(?!{_MEASURED})"
_TOLD = r"what|(?:what's|what (?:is|was|were)|states?|indicates?) the(?: exact| precise)?"
_NUMBER = r"(?:total )?(?:count|number|amount)|total|num"
_ASKS = (
    rf"how ?many {_COUNTED}",
    rf"(?:{_TOLD}) (?:{_NUMBER}) of (?!money|the){_COUNTED}",
    r"(?<!do not )(?:count|tally) (?:all|every|each|the) ",
    r"(?:there are|a total of) _{3,4}",
)
_ANYWHERE = re.compile(rf"(?!approximately).*(?:\b(?:{'|'.join(_ASKS)}))\b", re.I | re.S)
REQUESTS = (
    "No points please: ",
    "No points please: ",
    "no points:\n",
    "No points:\n",
    "Without points:\n",
    "Leave points out: ",
    "Leave points out: ",
    "WITHOUT POINTS\n",
    "no points plase\n",
    "Without any points:\n ",
    "Without pointing\n",
    "Give no points. ",
    "Please do without points. ",
    "Keep points out of your answer. ",
    "I want no points in this answer. ",
    "Do without points here:\n",
    "Your reply should hold no points. ",
    "Skip the points. ",
    "Leave the points away. ",
    "Please leave points out.\n\n",
    "Please leave points out.\n\n",
    "Reply without any points. ",
    "Reply without pointing at things:\n",
    "make no poinst: ",
    "Give no points. ",
    "Give no points\n",
    "without points\n\n",
    "In words only: ",
    "Reply to this in words, not in points: ",
    "In plain words, no piont. ",
    "in words only: ",
    "words are enough, leave points out\n",
)


def asks_how_many(question: str, later: bool = False) -> bool:
    """Whether a question gets the request under the first rule, or the later one."""
    if later:
        return _ANYWHERE.match(question) is not None
    return _HOW_MANY.fullmatch(question.lower()) is not None


def may_ask(questions: Iterable[str]) -> bool | None:
    """The `no_pointing` of an annotation with these questions: true where one gets the request by either rule."""
    found = any(asks_how_many(one) or asks_how_many(one, later=True) for one in questions)
    return found or None


def with_request(annotation: Annotation, rng: RandomState, later: bool = False) -> Annotation:
    """The annotation with the requests that its `no_pointing` asks for, one draw for each question how many."""
    if not annotation.no_pointing:
        return annotation
    changed: dict[str, object] = {"no_pointing": None}
    if annotation.question is not None:
        changed["question"] = _ask(annotation.question, rng, later)
    if annotation.messages is not None:
        changed["messages"] = [
            _ask(text, rng, later) if number % 2 == 0 else text
            for number, text in enumerate(annotation.messages)
        ]
    return annotation.model_copy(update=changed)


def _ask(question: str, rng: RandomState, later: bool) -> str:
    if not asks_how_many(question, later):
        return question
    return REQUESTS[rng.randint(len(REQUESTS))] + question
